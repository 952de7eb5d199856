"""What `compare` found: as data, and as JSON for programs and for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mla_export.judge import Comparison, Greedy, Judged, Verdict
from mla_export.plain import plain
from mla_runtime.manifest import Phase

Rows = Literal["latent", "rope", "block"]
SideVerdict = Literal["pass", "ambiguous", "fail", "reference", "absent"]
FORMAT = 1  # of the JSON; a report refuses a newer one


@dataclass(frozen=True, slots=True)
class Gate:
    """What a side may err.

    `computed` from the error of a peer (the plain model in the side's precision, over the same tokens), or
    `fixed`, a share of the reference's own size for the side's precision, where there is no checkpoint to
    compute a peer from. `judges` says which error of the side is held to it (`mla_export.judge.Budget`).
    `max_abs` and `rms` are in logits; `words` say what they were made of.
    """

    kind: Literal["computed", "fixed"]
    judges: Judged
    factor: float
    max_abs: float
    rms: float
    words: str


@dataclass(frozen=True, slots=True)
class Bulk:
    """What breaks fewer than half of the tokens, which the median of all of them does not see.

    `kl` is the mean KL of all tokens but the twentieth that is furthest off, in nats. `prompt_rms` is the RMS
    error of the median token of the `prompt` (from 0) where it is nearest to what is allowed; None where a
    prompt has too few. What is allowed is a multiple of the peer's own.
    """

    kl: float
    kl_allowed: float
    prompt: int | None
    prompt_rms: float | None
    prompt_allowed: float | None

    @property
    def parted(self) -> bool:
        """Whether either is beyond what is allowed."""
        if not self.kl <= self.kl_allowed:
            return True
        if self.prompt_rms is None or self.prompt_allowed is None:
            return False
        return not self.prompt_rms <= self.prompt_allowed


@dataclass(frozen=True, slots=True)
class Step:
    """Errors of the logits of all prompts after `step` forced tokens; 0 is the prompt's own last one.

    `position` is the mean position of these tokens; the errors are those of `mla_export.judge.Errors`.
    """

    step: int
    position: float
    max_abs: float
    rms: float
    cosine: float
    kl: float
    rank: int


@dataclass(frozen=True, slots=True)
class Drift:
    """RMS error of the logits over the first and over the last quarter of the steps."""

    first: float
    last: float

    @property
    def ratio(self) -> float:
        """How many times as large the error is at the end."""
        return self.last / self.first if self.first else (1.0 if self.last == 0.0 else float("inf"))


@dataclass(frozen=True, slots=True)
class LayerError:
    """One layer's rows of a kind: new latent rows, new rotary keys (rope), or the block's output.

    `rms` and `max_abs` are over the tokens of a phase, `relative` is `rms` over the reference's own RMS, and
    `allowed` what `relative` may be. `prompt` and `position` are those of the token that is furthest off.
    """

    layer: int
    rows: Rows
    phase: Phase
    tokens: int
    rms: float
    max_abs: float
    relative: float
    cosine: float
    allowed: float
    prompt: int
    position: int

    @property
    def parted(self) -> bool:
        """Whether it is beyond what is allowed."""
        return not self.relative <= self.allowed


@dataclass(frozen=True, slots=True)
class OperatorError:
    """One `mla::` operator, given the side's own inputs, against its definition in float64.

    `relative` is the RMS error over the RMS of what it should have given, `allowed` what that may be. None
    where the side's graph has no such value to look at.
    """

    name: str
    op_type: str
    relative: float | None
    allowed: float

    @property
    def parted(self) -> bool:
        """Whether it is beyond what is allowed."""
        return self.relative is not None and not self.relative <= self.allowed


@dataclass(frozen=True, slots=True)
class Bisection:
    """The operators of one layer of a side in one run of a graph, in the order in which they are computed.

    `layer` is None for the head; `first` names the first operator that parts, None where none does by itself.
    """

    layer: int | None
    phase: Phase
    prompt: int
    position: int
    operators: tuple[OperatorError, ...]
    first: str | None
    found: str


@dataclass(frozen=True, slots=True)
class Side:
    """A bundle on a backend, or the checkpoint in torch: what is held against the reference.

    `reason` says why one is absent. `kl` are the divergences at every forced position, in nats, prompt after
    prompt. `seconds` is what its forced decode took, which is no measurement of speed.
    """

    name: str
    bundle: str | None
    backend: str
    target: str | None
    absorb: str | None
    precision: str | None
    verdict: SideVerdict
    reason: str | None = None
    gate: Gate | None = None
    logits: Comparison | None = None
    bulk: Bulk | None = None
    steps: tuple[Step, ...] = ()
    drift: Drift | None = None
    kl: tuple[float, ...] = ()
    layers: tuple[LayerError, ...] = ()
    layers_note: str | None = None
    parted: LayerError | None = None
    greedy: tuple[Greedy, ...] = ()
    bisection: Bisection | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """All of a comparison: `sides` against one `reference`, over `prompts` of so many tokens and `steps`."""

    model: str
    bundles: tuple[str, ...]
    checkpoint: str | None
    reference: str
    forced: str
    prompts: tuple[int, ...]
    steps: int
    sides: tuple[Side, ...]
    seconds: float

    @property
    def verdicts(self) -> tuple[Verdict | SideVerdict, ...]:
        """Every side's verdict."""
        return tuple(side.verdict for side in self.sides)

    @property
    def passed(self) -> bool:
        """Whether every side that could be run is within its gate."""
        return "fail" not in self.verdicts

    @property
    def ambiguous(self) -> bool:
        """Whether a near tie was met."""
        return "ambiguous" in self.verdicts

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON's types; numbers that are not finite become null."""
        found = {**asdict(self), "passed": self.passed, "ambiguous": self.ambiguous}
        for side, shown in zip(self.sides, found["sides"], strict=True):
            if side.drift is not None:
                shown["drift"]["ratio"] = side.drift.ratio
            for layer, error in zip(side.layers, shown["layers"], strict=True):
                error["parted"] = layer.parted
        return {"kind": "compare", "format": FORMAT, **plain(found)}
