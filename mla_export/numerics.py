"""Hold what a bundle computed against its checkpoint, by Hugging Face's layers in float64.

The budget is the error of the plain, unabsorbed layers in the bundle's own precision on the same tokens. In
fp32 a bundle may have 4 times its largest and RMS error; in fp16 twice its RMS error, since there the largest
error and single routing choices say little. The peer of a quantised bundle is quantised too, as plainly as
can be (`mla_export.rounding`), and a bundle may have twice the error of its median row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mla_export.drive import Drive, Way
from mla_export.judge import Budget, Comparison, Greedy, Judged, Verdict, budget, compare, greedy, ratio
from mla_export.passage import Lane, Pass, Routing
from mla_export.reference import Reference, parameters, whole_model
from mla_export.rounding import Precision, Rounded, counterpart
from mla_export.routing import near_ties
from mla_export.verification import Check
from mla_runtime.errors import BundleError
from mla_runtime.manifest import Precision as Formats
from mla_runtime.wording import counted

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

PRECISIONS: dict[str, Precision] = {"float32": "float32", "float16": "float16"}
FACTORS: dict[Precision, float] = {"float32": 4.0, "float16": 2.0}
QUANTISED_FACTOR = 2.0
# a peer further off than this share of the logits' own RMS is broken and measures nothing
MAX_PEER_ERROR: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-1}
MAX_QUANTISED_PEER_ERROR = 1.0
# up to this many parameters (4 GB in fp32) Hugging Face's whole class is loaded too
WHOLE_CLASS_PARAMETERS = 1_000_000_000


def lane_of(formats: Formats) -> Lane:
    """Give how the peer of a bundle with these formats computes; BundleError where there is none."""
    if formats.compute not in PRECISIONS:
        raise BundleError(
            f"compute precision {formats.compute!r} has no peer to verify against; known: {[*PRECISIONS]}"
        )
    return counterpart(formats) or PRECISIONS[formats.compute]


def factor_of(lane: Lane) -> float:
    """Give how many times the error of a peer a bundle may have."""
    return QUANTISED_FACTOR if isinstance(lane, Rounded) else FACTORS[lane]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the comparison found; see `mla_export.verification.Verification`."""

    checks: tuple[Check, ...]
    budget: Budget
    comparisons: tuple[Comparison, ...]
    greedy: tuple[Greedy, ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a run is judged by: the yardstick (float64) and the peer, at the positions `keep` of each row.

    `behind_tie` and `peer_flipped` [S] a row mark the tokens from the first on that a gate might route
    otherwise, or that the peer did.
    """

    keep: list[list[int]]
    yardstick: list[Array]
    peer: list[Array]
    lane: Lane
    behind_tie: list[Array]
    peer_flipped: list[Array]

    @classmethod
    def of(cls, run: Drive, reference: Reference, lane: Lane) -> Ground:
        """Force every row of a run through the reference, in float64 and as the peer computes."""
        keep = positions(run)
        passes = reference.forward(run.rows, ["float64", lane], keep)
        return cls.from_passes(reference, run.rows, keep, passes["float64"], passes[lane], lane)

    @classmethod
    def from_passes(
        cls,
        reference: Reference,
        rows: Sequence[Sequence[int]],
        keep: list[list[int]],
        wide: Sequence[Pass],
        narrow: Sequence[Pass],
        lane: Lane,
    ) -> Ground:
        """Take rows that have been through the reference already, in float64 (`wide`) and as the peer."""
        triples = list(zip(rows, wide, narrow, strict=True))
        factor = factor_of(lane)
        return cls(
            keep,
            [found.logits for found in wide],
            [found.logits for found in narrow],
            lane,
            [from_first(len(r), _ties(reference, a, b, factor)) for r, a, b in triples],
            [from_first(len(r), _flips(a, b)) for r, a, b in triples],
        )

    @property
    def factor(self) -> float:
        """Give how many times the peer's error a bundle may have."""
        return factor_of(self.lane)

    def at(self, logits: Sequence[Array], way: Way) -> Array:
        """Take from logits [n, V] a row those at the positions of a way."""
        return logits[way.prompt][[self.keep[way.prompt].index(position) for position in way.at]]

    def budget(self) -> Budget:
        """Compute what the peer's own error allows. In fp32 only where it took the yardstick's experts."""
        strict = self.lane == "float32"
        judges: Judged = "largest" if strict else "median" if isinstance(self.lane, Rounded) else "rms"
        clean = [
            ~(flipped[kept] & strict) for flipped, kept in zip(self.peer_flipped, self.keep, strict=True)
        ]
        if not any(rows.any() for rows in clean):
            # every row is behind a flip: `_peer_check` decides whether this can stand
            clean = [np.ones(len(rows), dtype=bool) for rows in clean]
        peer, want = (
            np.concatenate([logits[rows] for logits, rows in zip(source, clean, strict=True)])
            for source in (self.peer, self.yardstick)
        )
        name = self.lane.name if isinstance(self.lane, Rounded) else self.lane
        return budget(peer, want, self.factor, f"Hugging Face's layers in {name}", judges)


def hold(run: Drive, reference: Reference, formats: Formats) -> Numbers:
    """Judge every way that a bundle was run, and its greedy tokens.

    Raises BundleError for a compute precision that has no peer.
    """
    ground = Ground.of(run, reference, lane_of(formats))
    allowed = ground.budget()
    checks = (_peer_check(ground, allowed), _whole_class(run, reference, ground, allowed))
    return Numbers(checks, allowed, comparisons(run, ground, allowed), greedy_tokens(run, ground, allowed))


def positions(run: Drive) -> list[list[int]]:
    """Every position of each row at which some way has logits."""
    keep: list[set[int]] = [set() for _ in run.prompts]
    for way in run.ways:
        keep[way.prompt].update(way.at)
    return [sorted(at) for at in keep]


def comparisons(run: Drive, ground: Ground, allowed: Budget) -> tuple[Comparison, ...]:
    """Judge the logits of each kind of way, over all prompts."""
    found = []
    for name in dict.fromkeys(way.name for way in run.ways):
        ways = [way for way in run.ways if way.name == name]
        got = np.concatenate([way.logits for way in ways])
        want = np.concatenate([ground.at(ground.yardstick, way) for way in ways])
        tie = np.concatenate([ground.behind_tie[way.prompt][list(way.at)] for way in ways])
        found.append(compare(name, got, want, allowed, tie))
    return tuple(found)


def greedy_tokens(run: Drive, ground: Ground, allowed: Budget) -> tuple[Greedy, ...]:
    """Judge the greedy tokens of each prompt by the yardstick's logits after the same tokens."""
    found = []
    for index, (prompt, tokens) in enumerate(zip(run.prompts, run.tokens, strict=True)):
        at = tuple(range(len(prompt) - 1, len(prompt) - 1 + len(tokens)))
        want = ground.at(ground.yardstick, Way("", index, at, np.empty(0)))
        tie = ground.behind_tie[index][list(at)]
        name = f"{index + 1}: {counted(len(prompt), 'token')}"
        found.append(greedy(name, tokens, want, 2 * allowed.max_abs, tie))
    return tuple(found)


def _peer_check(ground: Ground, allowed: Budget) -> Check:
    """Refuse a budget that a broken reference would make wide."""
    logits = np.concatenate(ground.yardstick)
    share = ratio(allowed.rms / allowed.factor, float(np.sqrt(np.mean(logits**2))))
    limit = MAX_QUANTISED_PEER_ERROR if isinstance(ground.lane, Rounded) else MAX_PEER_ERROR[ground.lane]
    flips = sum(int(flipped.any()) for flipped in ground.peer_flipped)
    found = f"{allowed.peer}: RMS error {share:.1e} of the logits' RMS, {limit:.0e} allowed"
    if flips:
        found += f"; it took other experts than in float64 in {flips} of {len(ground.peer_flipped)} prompts"
    return Check("the reference's own error", "pass" if share <= limit else "fail", found)


def _whole_class(run: Drive, reference: Reference, ground: Ground, allowed: Budget) -> Check:
    """Hold a small model also against Hugging Face's whole class, loaded and run by its own code."""
    name = "Hugging Face's whole class"
    config = reference.checkpoint.config
    if (count := parameters(reference.checkpoint)) > WHOLE_CLASS_PARAMETERS:
        return Check(name, "skipped", f"{count / 1e9:.1f} B parameters; up to 1 B are loaded at once")
    if config.get("model_type") != reference.geometry.family or "quantization_config" in config:
        return Check(name, "skipped", "transformers does not load this folder as it stands")
    if ground.lane != "float32":
        return Check(name, "skipped", "it is a witness for bundles that are float32 throughout")
    whole = whole_model(reference, run.rows, ground.keep)
    verdicts: list[Verdict] = []
    widest = 0.0
    # both are off by their own rounding: the bundle by what it may, the class by its own, once
    more = 1 + 1 / allowed.factor
    both = Budget(allowed.factor + 1, allowed.max_abs * more, allowed.rms * more, "largest", allowed.peer)
    for way in run.ways:
        tie = ground.behind_tie[way.prompt][list(way.at)]
        found = compare(name, way.logits, ground.at(whole, way), both, tie)
        verdicts.append(found.verdict)
        widest = max(widest, found.errors.max_abs)
    worst: Verdict = "fail" if "fail" in verdicts else "ambiguous" if "ambiguous" in verdicts else "pass"
    return Check(name, worst, f"bundle within {widest:.1e} of its logits, {both.max_abs:.1e} allowed")


def _flips(wide: Pass, narrow: Pass) -> list[Array]:
    """Tell for each gate which tokens [S] took other experts."""
    pairs = zip(wide.routing, narrow.routing, strict=True)
    return [(a.chosen != b.chosen).any(axis=-1) for a, b in pairs if a is not None and b is not None]


def _ties(reference: Reference, wide: Pass, narrow: Pass, factor: float) -> list[Array]:
    """Tell for each gate which tokens [S] it could well have routed otherwise."""
    pairs = zip(wide.routing, narrow.routing, strict=True)
    gates = [gate_ties(reference, layer, a, b, factor) for layer, (a, b) in enumerate(pairs)]
    return [ties for ties in gates if ties is not None]


def gate_ties(
    reference: Reference, layer: int, wide: Routing | None, narrow: Routing | None, factor: float
) -> Array | None:
    """Tell which tokens [S] the gate of a layer could well have routed otherwise; None where it has none."""
    moe = reference.geometry.moe
    if wide is None or narrow is None or moe is None:
        return None
    bias = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
    correction = reference.read(bias).double().numpy() if moe.correction_bias else None
    return near_ties(wide.logits, narrow.logits, moe, correction, factor)


def from_first(length: int, gates: list[Array]) -> Array:
    """Mark all tokens [S] from the first marked one on: its routing moves all tokens that attend to it."""
    marks = np.zeros(length, dtype=bool)
    for gate in gates:
        marks |= gate
    accumulated: Array = np.logical_or.accumulate(marks)
    return accumulated
