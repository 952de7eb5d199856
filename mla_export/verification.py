"""What `verify` found: as data, and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mla_export.judge import Budget, Comparison, Greedy, Verdict
from mla_export.plain import plain

if TYPE_CHECKING:
    from mla_export.quality import Quality


@dataclass(frozen=True, slots=True)
class Check:
    """One yes-or-no check: what was found, and why it was skipped or failed."""

    name: str
    verdict: Verdict
    found: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All of a verification. `budget`, `comparisons` and `greedy` are empty without a checkpoint.

    `quality` is None without a text. It has no verdict of its own: where a limit was given, a check has it.
    """

    bundle: str
    backend: str
    precision: str
    checkpoint: str | None
    checks: tuple[Check, ...]
    budget: Budget | None
    comparisons: tuple[Comparison, ...]
    greedy: tuple[Greedy, ...]
    quality: Quality | None
    seconds: float

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Every verdict of the report."""
        parts: tuple[Check | Comparison | Greedy, ...] = (*self.checks, *self.comparisons, *self.greedy)
        return tuple(part.verdict for part in parts)

    @property
    def passed(self) -> bool:
        """Whether nothing failed. Near ties (ambiguous) and what was skipped do not fail a bundle."""
        return "fail" not in self.verdicts

    @property
    def ambiguous(self) -> bool:
        """Whether a near tie was met."""
        return "ambiguous" in self.verdicts

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON's types; numbers that are not finite become null."""
        return plain({**asdict(self), "passed": self.passed, "ambiguous": self.ambiguous})  # type: ignore[no-any-return]
