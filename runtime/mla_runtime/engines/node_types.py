"""The element types of every value of a graph, found by what each operator makes of its inputs.

A bundle's graphs declare the types of their ends and weights only; a parser refuses by the types in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mla_runtime.engines.onnx_nodes import DTYPES, Graph, Model, Node, Value

_UNKNOWN = Value()
_BOOLEAN = {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"}
_INTEGER = {"ArgMax", "ArgMin", "NonZero", "Shape", "Size"}
_AS_FIRST = {"Expand", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Split", "Squeeze", "Tile"}


@dataclass(frozen=True, slots=True)
class Typed:
    """A node with what is known of its inputs and outputs, in their order; absent inputs are None."""

    node: Node
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]

    @property
    def kind(self) -> object:
        """What nodes of equal kinds have in common: all but their names."""
        node = self.node
        attributes = tuple(sorted(node.attributes.items()))
        return node.domain, node.operator, attributes, self.inputs, self.outputs

    @property
    def data(self) -> Value:
        """The value whose type an operator is known by: what `Where` chooses from, what `If` gives."""
        if self.node.operator in ("If", "Loop", "Constant", "ConstantOfShape"):
            return self.outputs[0] if self.outputs else _UNKNOWN
        place = 1 if self.node.operator == "Where" else 0
        return (self.inputs[place] if place < len(self.inputs) else None) or _UNKNOWN


def typed_nodes(model: Model) -> Iterator[Typed]:
    """Yield every node of a model, a subgraph's before the one that holds it."""
    yield from _walk(model.graph, {})


def _walk(graph: Graph, outer: Mapping[str, Value]) -> Iterator[Typed]:
    values = {**outer, **graph.values}
    for node in graph.nodes:
        inputs = tuple(values.get(name, _UNKNOWN) if name else None for name in node.inputs)
        inner: dict[str, tuple[str | None, ...]] = {}
        for name, held in node.graphs.items():
            scope = dict(values)
            if node.operator == "Loop":  # iteration, condition, then what is carried
                scope |= {
                    one: Value(value.dtype)
                    for one, value in zip(held.inputs[2:], inputs[2:], strict=False)
                    if value is not None
                }
                scope |= dict.fromkeys(held.inputs[:1], Value("int64"))
            inside = Graph(held.nodes, held.inputs, held.outputs, _known(held.values))
            for typed in _walk(inside, scope):
                scope |= dict(zip(typed.node.outputs, typed.outputs, strict=False))
                yield typed
            inner[name] = tuple(scope.get(one, _UNKNOWN).dtype for one in held.outputs)
        types = _results(node, inputs, inner)
        outputs = []
        for place, name in enumerate(node.outputs):
            known = values.get(name, _UNKNOWN)
            dtype = known.dtype or (types[place] if place < len(types) else types[-1] if types else None)
            constant = node.operator == "Constant"
            data = node.tensor.data if constant and node.tensor else None
            shape = node.tensor.shape if constant and node.tensor else known.shape
            values[name] = Value(dtype, shape, constant, data)
            outputs.append(values[name])
        yield Typed(node, inputs, tuple(outputs))


def _known(values: Mapping[str, Value]) -> Mapping[str, Value]:
    """Leave out what a subgraph only names: its types come from outside or are found."""
    return {name: value for name, value in values.items() if value.dtype is not None}


def _results(
    node: Node, inputs: tuple[Value | None, ...], inner: Mapping[str, tuple[str | None, ...]]
) -> tuple[str | None, ...]:
    """Give the types of a node's outputs; the last one stands for all that follow."""
    types = [value.dtype if value else None for value in inputs] + [None] * 3
    to = _named(node.attributes.get("to") or node.attributes.get("output_dtype"))
    match node.operator:
        case operator if operator in _BOOLEAN:
            return ("bool",)
        case operator if operator in _INTEGER:
            return ("int64",)
        case operator if operator in _AS_FIRST:
            return (types[0],)
        case "Cast":
            return (to,)
        case "CastLike":
            return (types[1],)
        case "Constant" | "ConstantOfShape":
            return (_constant(node),)
        case "DequantizeLinear":
            return (to or types[1],)
        case "QuantizeLinear":
            return (to or types[2] or "uint8",)
        case "TopK":
            return (types[0], "int64")
        case "Where":
            return (types[1] or types[2],)
        case "If":
            branches = zip(inner.get("then_branch", ()), inner.get("else_branch", ()), strict=False)
            return tuple(first or second for first, second in branches)
        case "Loop":
            return inner.get("body", ())[1:]  # the first says whether to go on
    return (next((dtype for dtype in types if dtype), None),)


def _constant(node: Node) -> str | None:
    if node.tensor is not None:
        return node.tensor.dtype
    return "int64" if {"value_int", "value_ints"} & node.attributes.keys() else "float32"


def _named(number: int | str | None) -> str | None:
    return DTYPES.get(number) if isinstance(number, int) else None
