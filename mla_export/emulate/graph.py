"""A graph of standard nodes computed one by one, with rounding where the graph's types say float16."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.emulate import arithmetic, moves
from mla_export.emulate.call import Call
from mla_export.emulate.watch import Watch
from mla_runtime.errors import BackendError

Precision = Literal["float16", "float32"]
_HALF = ir.DataType.FLOAT16


@dataclass(frozen=True, slots=True)
class Held:
    """A value on its way: `half` where the graph says float16, `finite` where its numbers are known to be."""

    tensor: Tensor
    half: bool
    finite: bool = True


_Known: TypeAlias = MutableMapping["ir.Value | None", Held]


class Graph:
    """A graph, in one of two precisions.

    float16: what the graph says is float16 is rounded to it after each node, and `watch` is shown it before
    and after. float32: it is kept in float32, which is the graph without its rounding. In both, nodes are
    computed in float32 from the inputs as they are; sums inside a matmul and a reduction are not rounded on
    the way.
    """

    def __init__(
        self, graph: ir.Graph, weights: Callable[[ir.Value], Tensor], precision: Precision, watch: Watch
    ) -> None:
        self._graph, self._weights, self._watch = graph, weights, watch
        self._rounds = precision == "float16"
        self._done_with = _last_uses(graph)

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute all outputs by name. Raises BackendError for a node that no portable graph has."""
        known: _Known = {value: _given(value, inputs[str(value.name)]) for value in self._graph.inputs}
        for node in self._graph:
            self._compute(node, known)
            for value in self._done_with.get(node, ()):
                known.pop(value, None)
        return {str(value.name): self._of(value, known).tensor for value in self._graph.outputs}

    def _compute(self, node: ir.Node, known: _Known) -> None:
        inputs = [None if value is None else self._of(value, known) for value in node.inputs]
        if node.op_type == "If":
            outputs = self._if(node, inputs, known)
        elif node.op_type == "Loop":
            outputs = self._loop(node, inputs, known)
        else:
            outputs = self._plain(node, inputs)
        known.update(zip(node.outputs, outputs, strict=True))

    def _of(self, value: ir.Value, known: _Known) -> Held:
        if value in known:
            return known[value]
        return Held(self._weights(value), value.dtype == _HALF)  # not kept: it is mapped

    def _plain(self, node: ir.Node, inputs: Sequence[Held | None]) -> list[Held]:
        sound = all(held.finite for held in inputs if held is not None)
        if rule := moves.RULES.get(node.op_type):
            found = rule(Call(node, [None if held is None else held.tensor for held in inputs]))
            half = self._is_half(node, inputs)
            return [Held(x, half and x.is_floating_point(), sound) for x in found]
        if rule := arithmetic.PRODUCTS.get(node.op_type):
            found = rule(Call(node, [None if held is None else held.tensor for held in inputs]))
        elif (rule := arithmetic.RULES.get(node.op_type)) and node.domain == "":
            found = rule(Call(node, [None if held is None else _wide(held.tensor) for held in inputs]))
        else:
            op = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise BackendError(
                f"{node.name}: {op} is no operator of a portable graph; export --target portable"
            )
        half = self._is_half(node, inputs)
        # what reads codes says of their type how large it gets, and nothing else
        watched = half and inputs[0] is not None and inputs[0].tensor.is_floating_point()
        outputs = [self._rounded(x, half) for x in found]
        if watched:
            for value, exact, held in zip(node.outputs, found, outputs, strict=True):
                self._watch(node, value, exact, held.tensor, sound)
            if node.op_type in arithmetic.PRODUCTS and not self._rounds:
                magnitudes = [None if held is None else held.tensor.abs() for held in inputs]
                self._watch.bound(node, rule(Call(node, magnitudes))[0])
        return outputs

    def _rounded(self, exact: Tensor, half: bool) -> Held:
        if not exact.is_floating_point():
            return Held(exact, False)
        rounded = exact.half() if half and self._rounds else exact
        return Held(rounded, half, _is_finite(rounded))

    def _is_half(self, node: ir.Node, inputs: Sequence[Held | None]) -> bool:
        """Say whether a node's floats are float16: a cast says so itself, others are as their floats are."""
        if node.op_type == "Cast":
            return node.attributes["to"].as_int() == _HALF
        if node.op_type == "Constant":
            return node.attributes["value"].as_tensor().dtype == _HALF
        return next((h.half for h in inputs if h is not None and h.tensor.is_floating_point()), False)

    def _inner(self, graph: ir.Graph, known: _Known) -> list[Held]:
        for node in graph:
            self._compute(node, known)
        return [self._of(value, known) for value in graph.outputs]

    def _if(self, node: ir.Node, inputs: Sequence[Held | None], known: _Known) -> list[Held]:
        condition = inputs[0]
        chosen = "then_branch" if condition is not None and bool(condition.tensor) else "else_branch"
        inner: dict[ir.Value | None, Held] = {}
        return self._inner(node.attributes[chosen].as_graph(), ChainMap(inner, known))

    def _loop(self, node: ir.Node, inputs: Sequence[Held | None], known: _Known) -> list[Held]:
        """Run a loop over a trip count: what is carried comes out last, what each round gives is stacked."""
        body, (count, condition, *carried) = node.attributes["body"].as_graph(), inputs
        if count is None or condition is not None or carried:
            raise BackendError(f"{node.name}: a Loop of a portable graph has a trip count and nothing else")
        rounds: list[list[Held]] = []
        for i in range(int(count.tensor)):
            given = (Held(torch.tensor(i), False), Held(torch.tensor(True), False))
            inner: dict[ir.Value | None, Held] = dict(zip(body.inputs, given, strict=True))
            rounds.append(self._inner(body, ChainMap(inner, known))[1:])
        return [
            Held(torch.stack([h.tensor for h in held]), held[0].half, all(h.finite for h in held))
            for held in zip(*rounds, strict=True)
        ]


def _given(value: ir.Value, tensor: Tensor) -> Held:
    return Held(tensor, value.dtype == _HALF, _is_finite(tensor))


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _last_uses(graph: ir.Graph) -> dict[ir.Node, list[ir.Value]]:
    """Give for each node what is not needed after it, uses inside its subgraphs counted as its own."""
    last: dict[ir.Value, ir.Node] = {}
    for node in graph:
        last.update(dict.fromkeys(_used(node), node))
    kept = set(graph.outputs)
    found: dict[ir.Node, list[ir.Value]] = {}
    for value, node in last.items():
        if value not in kept:
            found.setdefault(node, []).append(value)
    return found


def _used(node: ir.Node) -> Iterable[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    yield from node.outputs  # which nobody may ask for
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            yield from inner.outputs
            for part in inner:
                yield from _used(part)
