"""What `verify` found: as data, as JSON for programs, as tables for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mla_export.compare import Budget, Comparison, Greedy, Verdict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_STYLES = {"pass": "green", "ambiguous": "yellow", "fail": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class Check:
    """One yes-or-no check: what was found, and why it was skipped or failed."""

    name: str
    verdict: Verdict
    found: str


@dataclass(frozen=True, slots=True)
class Report:
    """All of a verification. `budget`, `comparisons` and `greedy` are empty without a checkpoint."""

    bundle: str
    backend: str
    precision: str
    checkpoint: str | None
    checks: tuple[Check, ...]
    budget: Budget | None
    comparisons: tuple[Comparison, ...]
    greedy: tuple[Greedy, ...]
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
        return _plain({**asdict(self), "passed": self.passed, "ambiguous": self.ambiguous})  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def render(report: Report) -> Group:
    """Lay the report out as tables and a closing line, for a rich console."""
    from rich.console import Group, RenderableType
    from rich.text import Text

    parts: list[RenderableType] = [_checks(report)]
    if report.budget is not None:
        parts += [_comparisons(report, report.budget), _greedy(report)]
    verdict = "passed" if report.passed else "FAILED"
    if report.passed and report.ambiguous:
        verdict = "passed, with near ties (AMBIGUOUS rows: both answers are right within rounding)"
    style = _STYLES["fail" if not report.passed else "ambiguous" if report.ambiguous else "pass"]
    parts.append(Text(f"{report.bundle}: {verdict} ({report.seconds:.1f} s)", style=style))
    return Group(*parts)


def _verdict(verdict: Verdict) -> Text:
    from rich.text import Text

    return Text("AMBIGUOUS" if verdict == "ambiguous" else verdict, style=_STYLES[verdict])


def _table(title: str, *columns: str, numbers: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if numbers and index else "left")
    return table


def _checks(report: Report) -> Table:
    title = f"{report.bundle} on {report.backend}"
    table = _table(title, "check", "verdict", "found", numbers=False)
    for check in report.checks:
        table.add_row(check.name, _verdict(check.verdict), check.found)
    return table


def _comparisons(report: Report, budget: Budget) -> Table:
    limits = [f"max {budget.max_abs:.1e}"] if budget.judges_max else []
    limits.append(f"RMS {budget.rms:.1e}")
    title = (
        f"Logits ({report.precision}) against {report.checkpoint} in float64\n"
        f"allowed: {', '.join(limits)}, which is {budget.factor:g} × the error of {budget.peer}"
    )
    columns = ("run", "rows", "max |Δ|", "RMS Δ", "1 - cosine", "KL, nats", "rank", "needs", "verdict")
    table = _table(title, *columns)
    for row in report.comparisons:
        e = row.errors
        table.add_row(
            row.name,
            str(e.rows),
            f"{e.max_abs:.1e}",
            f"{e.rms:.1e}",
            f"{1.0 - e.cosine:.1e}",
            f"{e.kl:.1e}",
            str(e.rank),
            f"{row.would_pass:.2f} ×",
            _verdict(row.verdict),
        )
    return table


def _greedy(report: Report) -> Table:
    columns = ("prompt", "agreed", "first difference", "lost by", "near tie up to", "verdict")
    table = _table("Greedy tokens against the reference's choice after the same tokens", *columns)
    for row in report.greedy:
        table.add_row(
            row.name,
            f"{row.agreed} / {row.steps}",
            "none" if row.first_difference is None else f"step {row.first_difference}",
            "–" if row.margin is None else f"{row.margin:.1e}",
            f"{row.limit:.1e}",
            _verdict(row.verdict),
        )
    return table
