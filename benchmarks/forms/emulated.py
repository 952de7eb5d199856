"""A checkpoint's graphs, operator by operator: each result rounded to 16 bits, its largest value kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from forms.errors import Array, Found
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mla_export import operators
from mla_export.assemble import assemble
from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_export.layout import layout
from mla_export.params import Recipes
from mla_export.plan import Plan
from mla_export.quantize import quantize_blocks
from mla_export.trace import trace
from mla_graphs.geometry import Absorb, Phase

GROUP = 32
_GATE = re.compile(r"layers\.(\d+)\..*router")
_HALVES = (torch.float16, torch.bfloat16)


class Largest(TorchFunctionMode):
    """Keeps the largest magnitude of all 16-bit results since it was last asked.

    What an operator gives and what it computes on the way, like scores before a softmax; not its inputs, but
    for weights, which are rounded there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._value = 0.0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and look at its result."""
        result = func(*args, **(kwargs or {}))
        # a conversion to the type that a tensor has already gives the tensor itself
        made = isinstance(result, Tensor) and not (args and result is args[0])
        if made and result.dtype in _HALVES and result.numel():
            with torch._C.DisableTorchFunction():
                self._value = max(self._value, float(result.abs().max().nan_to_num(nan=torch.inf)))
        return result

    def take(self) -> float:
        """Give what was kept and begin anew."""
        value, self._value = self._value, 0.0
        return value


class Emulated:
    """One form of attention of a checkpoint, fed with windows [B, S] from an empty cache."""

    def __init__(self, source: Checkpoint, absorb: Absorb, max_context: int | None = None) -> None:
        family = family_of(source.config)
        geometry = family.geometry(source.config, max_context)
        names = account(source, family, geometry).names
        self._plan = Plan.floats(geometry, absorb, "float32")
        self._traced, self._layout = trace(self._plan), layout(self._plan)
        self._recipes = Recipes(geometry, absorb, torch.float64, lambda name: source.read(names[name]))

    def run(
        self,
        windows: Sequence[Sequence[int]],
        phase: Phase,
        precision: operators.Precision,
        int4: tuple[str, ...] = (),
    ) -> Found:
        """Compute the graph of a phase over all windows at once.

        Matrices of the layers whose names end with one of `int4` are rounded by searched scales first.
        """
        graph = assemble(self._plan, phase, self._traced, self._layout, "none").graph
        logits: Array = np.empty(0)
        experts: dict[int, Array] = {}
        largest: dict[str, float] = {}
        with Largest() as watch:
            weight = partial(self._weight, int4)
            for node, outputs in operators.run(graph, self._feed(windows), weight, precision):
                largest[str(node.name)] = watch.take()
                if node.op_type == "Route" and (gate := _GATE.match(str(node.name))):
                    experts[int(gate[1])] = outputs[0].sort(-1).values.numpy()
                if node.op_type == "Logits":
                    logits = outputs[0].double().numpy()
        return Found(logits, experts, largest)

    def _weight(self, int4: tuple[str, ...], name: str) -> Tensor:
        weight = torch.cat(list(self._recipes(name)))
        if not name.startswith("layers.") or not name.endswith(int4):
            return weight
        stacked = weight.mT.reshape(-1, weight.shape[-2])  # [(H·)out, in]
        rounded = quantize_blocks(stacked.float(), 4, GROUP).dequantize()
        return rounded.reshape(weight.mT.shape).mT

    def _feed(self, windows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        ids = torch.tensor(windows)
        batch, count = ids.shape
        shapes = {spec.past.name: spec.past.shape[2:] for spec in self._plan.contract.cache}
        return {
            "input_ids": ids,
            "position_ids": torch.arange(count).expand(batch, count),
            "past_lengths": torch.zeros(batch, dtype=torch.int64),
            "new_lengths": torch.full((batch,), count),
            "logit_rows": torch.arange(batch * count),
            # an empty cache is one row that does not count
            **{name: torch.zeros(batch, 1, *map(int, shape)) for name, shape in shapes.items()},
        }
