"""What an operator of a side erred, and what it may: its weights, their rounding, and the limits."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.compare.result import OperatorError
from mla_export.judge import ratio
from mla_export.numerics import factor_of, lane_of
from mla_export.operators import Precision
from mla_export.params import Recipes
from mla_export.plan import Plan
from mla_export.quantize.rule import is_table
from mla_export.reference import Reference
from mla_export.rounding import Rounded
from mla_export.routing import margins
from mla_runtime.manifest import Precision as Formats

# Below this share of its size no operator's error is looked at, by what it is computed in: engines
# approximate exp and sigmoid, and sum in orders of their own.
FLOOR = {"float32": 1e-5, "float16": 4e-3}
# Queries and probabilities of 8 bits beside rows of 8 bits: about 1/127 of the largest of each.
INT8_ATTENTION = 3e-2
# A code that falls to the other side of a rounding is off by one of 127 levels.
CODES = 5e-3


class Parameters:
    """The weights of a side's operators from the checkpoint, and rounded as plainly as its formats say."""

    def __init__(self, formats: Formats, reference: Reference, plan: Plan) -> None:
        lane = lane_of(formats)
        self.precision: Precision = lane.precision if isinstance(lane, Rounded) else lane
        self._lane = lane if isinstance(lane, Rounded) and lane.scheme else None
        self._plan = plan
        self._recipes = Recipes(plan.geometry, plan.absorb, torch.float64, reference.read)

    def __call__(self, name: str) -> Tensor:
        """Give a parameter by its name in the graph, as the checkpoint has it."""
        return torch.cat(list(self._recipes(name)))

    def rounded(self, node: ir.Node, place: int, exact: Tensor) -> Tensor:
        """Give input `place` of an operator as the peer has it: a weight or what is multiplied with it."""
        value = node.inputs[place]
        if self._lane is None or value is None:
            return exact
        if value.is_initializer():
            return self._weight(str(value.name), exact, self._lane)
        weights = [str(v.name) for v in node.inputs if v is not None and v.is_initializer()]
        geometry = self._plan.geometry
        if place or node.op_type == "Embed":
            return exact
        rounds = any(self._lane.rounds_inputs(name, geometry) for name in weights)
        return self._lane.multiplied(exact) if rounds else exact

    def _weight(self, name: str, exact: Tensor, lane: Rounded) -> Tensor:
        if exact.dim() < 2 or is_table(name):
            return lane.matrix(name, exact, self._plan.geometry)
        return lane.matrix(name, exact.mT, self._plan.geometry).mT


class Allowed:
    """Judges operators of a side with these formats."""

    def __init__(self, formats: Formats, plan: Plan) -> None:
        self._factor = factor_of(lane_of(formats))
        self._floor = FLOOR[plan.compute]
        self._plan = plan
        # `ort-cpu` multiplies rows of 8 bits with queries and probabilities of 8 bits
        self._int8_attention = formats.cache == "uint8"

    def judge(
        self,
        node: ir.Node,
        got: Sequence[Tensor | None],
        wanted: Sequence[Tensor],
        peer: Sequence[Tensor],
        inputs: Sequence[Tensor | None],
    ) -> OperatorError:
        """Compare what an operator gave with what it should have, the peer's error in hand."""
        limit = self._floor
        if self._int8_attention and node.op_type in ("LatentAttention", "PromptAttention"):
            limit = INT8_ATTENTION
        if node.op_type == "QuantizeRows":
            limit = CODES
        wanted, peer = _comparable(node, wanted), _comparable(node, peer)
        known = [None if value is None else value.double() for value in _shown(node, got)]
        keep = self._settled(node, inputs)
        error: float | None = None
        for value, want, other in zip(known, wanted, peer, strict=True):
            if value is None or value.shape != want.shape:
                continue
            rows = slice(None) if keep is None else keep
            size = _rms(want[rows])
            error = max(error or 0.0, ratio(_rms(value[rows] - want[rows]), size))
            limit = max(limit, self._factor * ratio(_rms(other[rows] - want[rows]), size))
        return OperatorError(str(node.name), node.op_type, error, limit)

    def _settled(self, node: ir.Node, inputs: Sequence[Tensor | None]) -> Tensor | None:
        """Give the tokens that a gate cannot well route otherwise; None for what is no gate."""
        moe = self._plan.geometry.moe
        if node.op_type != "Route" or moe is None or inputs[0] is None or inputs[1] is None:
            return None
        logits = inputs[0].double() @ inputs[1].double()
        correction = inputs[2] if len(inputs) > 2 else None
        bias = None if correction is None else correction.double().numpy()
        close = margins(logits.numpy(), moe, bias) <= self._floor * float(logits.abs().max())
        return torch.from_numpy(~close)


def _shown(node: ir.Node, got: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give outputs in the form in which they are compared, None where one of them cannot be seen."""
    if all(value is not None for value in got):
        return list(_comparable(node, [value for value in got if value is not None]))
    if node.op_type in ("QuantizeRows", "Route"):
        return [None]
    return [None if value is None else value.double() for value in got]


def _comparable(node: ir.Node, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Turn codes and scales into the rows they stand for, and choices of experts into weights an expert."""
    if node.op_type == "QuantizeRows":
        codes, scale = outputs
        zero = 128.0 if codes.dtype == torch.uint8 else 0.0
        return [(codes.double() - zero) * scale.double()[..., None]]
    if node.op_type == "Route":
        ids, weights = outputs
        dense = torch.zeros(len(ids), int(node.attributes["experts"].as_int()), dtype=torch.float64)
        return [dense.scatter_add_(1, ids, weights.double())]
    if node.op_type == "Visibility":  # what follows are shapes, which may say one thing in several ways
        outputs = outputs[:3]
    return [value.double() for value in outputs]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
