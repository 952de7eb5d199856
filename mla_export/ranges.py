"""Whether a float16 bundle stays in float16's range on a text, how near each node comes, what rounding costs.

The bundle's graphs are computed node by node as a card does it (`mla_export.emulate`), and beside that
without rounding. A node's largest magnitude is taken of both, before rounding: what comes after an overflow
is lost in the one and goes on in the other, so that one run shows every node that would overflow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mla_export import progress
from mla_export.judge import divergence
from mla_export.plain import plain
from mla_runtime.bundle import Bundle
from mla_runtime.errors import InputError
from mla_runtime.manifest import Phase

if TYPE_CHECKING:
    from mla_export.compare.script import Script
    from mla_export.emulate import Both, Seen

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Fit = Literal["overflow", "close", "fine"]

LIMIT = 65504.0  # the largest float16
ROUNDS_AWAY = 65520.0  # from here on it rounds to infinity
CLOSE = 2.0  # a node within this factor of the limit is told
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_ROWS = 64  # of logits that are compared at a time


@dataclass(frozen=True, slots=True)
class Reached:
    """How far the float16 results of a node went.

    `operator` is its name without the layer's (None: outside of the layers). `largest` was found in prompt
    `prompt` (from 0) between its tokens `first` and `last`. `overflows` counts results that became infinite
    where everything before was finite; `subnormal` is the share of those too small to keep all bits. `sums`
    bounds the partial sums of a product, in whatever order they are added (None: not a product).
    """

    node: str
    op_type: str
    layer: int | None
    operator: str
    largest: float
    share: float
    phase: Phase
    prompt: int
    first: int
    last: int
    overflows: int
    subnormal: float
    sums: float | None
    fit: Fit


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding does to the logits at `tokens` positions; only those `finite` are measured.

    `rms` and `max_abs` in logits, `median` the RMS error of the median token (a gate that falls the other way
    moves its token by more than all rounding), `relative` the RMS error over the logits' own RMS, `kl` the
    mean divergence in nats, `same_top` the share whose most likely token is the same. None where nothing is
    finite.
    """

    tokens: int
    finite: int
    rms: float | None
    median: float | None
    relative: float | None
    max_abs: float | None
    kl: float | None
    same_top: float | None


@dataclass(frozen=True, slots=True)
class Ranges:
    """What was found.

    `nodes` are in the graph's order, `prompts` their lengths, `forced` says whose the `steps` tokens were.
    """

    bundle: str
    prompts: tuple[int, ...]
    steps: int
    forced: str
    nodes: tuple[Reached, ...]
    rounding: Rounding
    seconds: float

    @property
    def overflowing(self) -> list[Reached]:
        """The nodes that overflow, in the graph's order."""
        return [node for node in self.nodes if node.fit == "overflow"]

    @property
    def passed(self) -> bool:
        """Say whether float16 holds everything."""
        return not self.overflowing and self.rounding.finite == self.rounding.tokens

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON's types; numbers that are not finite become null."""
        return plain({**asdict(self), "limit": LIMIT, "passed": self.passed})  # type: ignore[no-any-return]


def look(
    bundle: Bundle, *, prompts: str | Path | None = None, text: str | Path | None = None, steps: int = 16
) -> Ranges:
    """Compute prompts and `steps` tokens after each, which are a text's own or those without rounding.

    The files of `bundle` must have been hashed. Raises InputError for a bundle that does not compute in
    float16 and for prompts that cannot be taken, CapacityError for one that leaves no room for the steps.
    """
    began = time.monotonic()
    if (compute := bundle.manifest.precision.compute) != "float16":
        raise InputError(
            f"{bundle.path}: computes in {compute}, whose range nothing here leaves; export the checkpoint "
            "with --dtype fp16 to see whether float16 holds it"
        )
    from mla_export.compare.script import script
    from mla_export.emulate import Both

    both = Both(bundle)
    chosen = script(both, steps, prompts, text)
    tally = _Tally()
    with progress.task("node by node", sum(len(row) + steps for row in chosen.prompts)) as advance:
        for rounded, exact in _decode(both, chosen, steps):
            tally.add(rounded, exact)
            advance(len(exact))
    return Ranges(
        bundle=str(bundle.path),
        prompts=tuple(map(len, chosen.prompts)),
        steps=steps,
        forced="greedy tokens" if chosen.forced is None else chosen.words,
        nodes=tuple(_nodes(both.rounded.watch.seen, both.exact.watch.seen)),
        rounding=tally.rounding(),
        seconds=time.monotonic() - began,
    )


def _decode(both: Both, chosen: Script, steps: int) -> Iterator[tuple[Array, Array]]:
    """Feed each prompt in chunks, then all of them together step by step; give both lanes' logits of each."""
    greedy = []
    for prompt in chosen.prompts:
        both.begin(len(prompt) + steps)
        for start in range(0, len(prompt), both.bundle.chunk):
            found = both.prompt(prompt[start : start + both.bundle.chunk])
            yield found
        greedy.append(int(found[1][-1].argmax()))
    for step in range(steps):
        found = both.step(greedy if chosen.forced is None else [row[step] for row in chosen.forced])
        yield found
        greedy = found[1].argmax(axis=1).tolist()


class _Tally:
    """Sums up how far rounded logits are from exact ones."""

    def __init__(self) -> None:
        self._tokens = self._finite = self._same = 0
        self._size = self._kl = self._largest = 0.0
        self._squares: list[float] = []  # of each token

    def add(self, rounded: Array, exact: Array) -> None:
        """Take logits [S, V]."""
        for start in range(0, len(exact), _ROWS):
            got, want = rounded[start : start + _ROWS], exact[start : start + _ROWS]
            whole = np.isfinite(got).all(axis=1) & np.isfinite(want).all(axis=1)
            self._tokens += len(want)
            got, want = got[whole].astype(np.float64), want[whole].astype(np.float64)
            if not len(want):
                continue
            self._finite += len(want)
            self._same += int((got.argmax(axis=1) == want.argmax(axis=1)).sum())
            self._squares += ((got - want) ** 2).mean(axis=1).tolist()
            self._size += float((want**2).mean(axis=1).sum())
            self._kl += float(divergence(got, want).sum())
            self._largest = max(self._largest, float(np.abs(got - want).max()))

    def rounding(self) -> Rounding:
        """Give what was found."""
        if not (n := self._finite):
            return Rounding(self._tokens, 0, None, None, None, None, None, None)
        return Rounding(
            tokens=self._tokens,
            finite=n,
            rms=float(np.mean(self._squares)) ** 0.5,
            median=float(np.median(self._squares)) ** 0.5,
            relative=(sum(self._squares) / self._size) ** 0.5 if self._size else None,
            max_abs=self._largest,
            kl=self._kl / n,
            same_top=self._same / n,
        )


def _nodes(rounded: dict[str, Seen], exact: dict[str, Seen]) -> Iterator[Reached]:
    for name, seen in rounded.items():
        other = exact.get(name, seen)  # routed otherwise, an expert may have no tokens in one of the two
        further = seen if seen.largest >= other.largest else other
        place = further.place or seen.place
        if place is None:
            continue
        layer = _LAYER.fullmatch(name)
        share = further.largest / LIMIT
        fit: Fit = "close" if share > 1 / CLOSE else "fine"
        yield Reached(
            node=name,
            op_type=seen.op_type,
            layer=int(layer[1]) if layer else None,
            operator=layer[2] if layer else name,
            largest=further.largest,
            share=share,
            phase=place.phase,
            prompt=place.prompt,
            first=place.first,
            last=place.last,
            overflows=seen.overflows,
            subnormal=seen.subnormal / max(1, seen.values),
            sums=other.sums,
            fit="overflow" if further.largest >= ROUNDS_AWAY or seen.overflows else fit,
        )
