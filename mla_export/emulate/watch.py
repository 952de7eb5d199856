"""What every float16 result of a graph came to: its largest magnitude and where, and what rounding lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import torch
from torch import Tensor

from mla_runtime.manifest import Phase

TINY = 2.0**-14  # the smallest normal float16


@dataclass(frozen=True, slots=True)
class Place:
    """Tokens of one prompt, or of what was forced after it: positions `first` to `last`."""

    phase: Phase
    prompt: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Calling:
    """What a graph is called with: `count` new tokens of `rows`, each a prompt and its next position."""

    phase: Phase
    rows: tuple[tuple[int, int], ...]
    count: int

    def place(self, output: ir.Value, index: Sequence[int]) -> Place:
        """Say where an element of a node's `output` belongs, as far as the axes of its shape tell.

        In a step every value has a row of the batch along its first axis.
        """
        row, token = (index[0] if self.phase == "step" and index and index[0] < len(self.rows) else 0), None
        for axis, size in enumerate(() if output.shape is None else output.shape):
            name = size.value if isinstance(size, ir.SymbolicDim) else None
            if name == "S":
                token = index[axis]
            elif name in ("B*S", "N"):
                row, token = divmod(index[axis], self.count)
        prompt, start = self.rows[row]
        if token is None:
            return Place(self.phase, prompt, start, start + self.count - 1)
        return Place(self.phase, prompt, start + token, start + token)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node's float16 results came to over all calls.

    `largest` is the largest finite magnitude before rounding, found at `place` (None: there was none);
    `overflows` counts results that are not finite though all that went in was; `values` counts all results,
    `subnormal` those below the smallest normal float16, but not zero. `sums`, of a product: the largest sum
    of its terms' magnitudes, which no partial sum passes in whatever order a kernel adds.
    """

    op_type: str
    largest: float = 0.0
    place: Place | None = None
    overflows: int = 0
    values: int = 0
    subnormal: int = 0
    sums: float | None = None


@dataclass(slots=True)
class Watch:
    """Collects what is seen of each node, by name; `calling` is to be set before each call of a graph."""

    calling: Calling
    seen: dict[str, Seen] = field(default_factory=dict)

    def __call__(self, node: ir.Node, output: ir.Value, exact: Tensor, rounded: Tensor, sound: bool) -> None:
        """Look at a result before and after rounding; `sound` says that all inputs of the node are finite."""
        if not exact.numel():
            return
        name = str(node.name)
        before = self.seen.get(name, Seen(node.op_type))
        magnitude = exact.abs()
        wrong = 0 if rounded.isfinite().all() else int((~rounded.isfinite()).sum())
        if wrong:
            magnitude = magnitude.nan_to_num(nan=0.0, posinf=0.0)
        top = float(magnitude.max())
        after = replace(
            before,
            overflows=before.overflows + (wrong if sound else 0),
            values=before.values + exact.numel(),
            subnormal=before.subnormal + int(((magnitude < TINY) & (exact != 0)).sum()),
        )
        if top > before.largest or before.place is None:
            index = [int(i) for i in torch.unravel_index(magnitude.argmax(), magnitude.shape)]
            after = replace(after, largest=top, place=self.calling.place(output, index))
        self.seen[name] = after

    def bound(self, node: ir.Node, sums: Tensor) -> None:
        """Take the sums of a product's terms' magnitudes, after the product itself was looked at."""
        name, top = str(node.name), float(sums.max()) if sums.numel() else 0.0
        if before := self.seen.get(name):
            self.seen[name] = replace(before, sums=max(top, before.sums or 0.0))
