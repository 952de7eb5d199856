"""Lowering: each `mla::` operator written out for a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx_ir as ir

from mla_graphs import ops
from mla_graphs.geometry import Phase
from mla_graphs.lowering import ort_cpu, portable
from mla_graphs.lowering.builder import CONTRIB, Builder, Call, Constants, Rule

__all__ = ["TARGETS", "lower"]

TARGETS: dict[str, Callable[[Phase], Mapping[str, Rule]]] = {
    "portable": portable.rules,
    "ort-cpu": ort_cpu.rules,
}


def lower(model: ir.Model, target: str, phase: Phase) -> ir.Model:
    """Write a model of `mla::` operators out for `target`.

    The result has the same inputs, outputs and initializers (shared with `model`, which is used up);
    an operator that the target has no rule for raises KeyError.
    """
    rules = TARGETS[target](phase)
    graph = model.graph
    constants = Constants()
    lowered: dict[ir.Value | None, ir.Value | None] = {}
    nodes: list[ir.Node] = []
    for node in graph:
        inputs = [lowered.get(value, value) for value in node.inputs]
        if node.domain == ops.DOMAIN:
            builder = Builder(node.attributes["name"].as_string(), constants, graph.opset_imports[""])
            call = Call(node, [value for value in inputs if value is not None])
            outputs = rules[node.op_type](builder, call)
            _named_alike(node, outputs, builder.nodes)
            nodes.extend(builder.nodes)
        else:
            outputs = [ir.Value(name=value.name) for value in node.outputs]
            nodes.append(
                ir.Node(node.domain, node.op_type, inputs, node.attributes, outputs=outputs, name=node.name)
            )
        for old, new in zip(node.outputs, outputs, strict=True):
            new.shape, new.type = old.shape, old.type
            lowered[old] = new
    return _rebuilt(model, nodes, lowered, constants)


def _named_alike(operator: ir.Node, outputs: Iterable[ir.Value], nodes: Iterable[ir.Node]) -> None:
    """Call an operator's outputs alike in every target, so that graphs can be compared by their values."""
    made = {value.name: value for node in nodes for value in node.outputs}
    for old, new in zip(operator.outputs, outputs, strict=True):
        if new.name not in made:
            continue  # what went in, as it came
        if (within := made.get(old.name)) is not None and within is not new:
            within.name = f"{old.name}.inner"
        new.name = old.name


def _rebuilt(
    model: ir.Model,
    nodes: list[ir.Node],
    lowered: Mapping[ir.Value | None, ir.Value | None],
    constants: Constants,
) -> ir.Model:
    graph = model.graph
    outputs = []
    for old in graph.outputs:
        new = lowered.get(old) or old
        new.name = old.name
        outputs.append(new)
    inputs, initializers = list(graph.inputs), list(graph.initializers.values())
    # A value belongs to one graph: the old one lets go before the new one takes hold.
    graph.remove(list(graph), safe=False)
    graph.outputs.clear()
    graph.inputs.clear()
    graph.initializers.clear()
    # What a target reads in parts, it no longer reads as a whole.
    read = {value for node in _all(nodes) for value in node.inputs}
    initializers = [value for value in initializers if value in read]
    domains = {node.domain for node in _all(nodes)}
    contrib = {CONTRIB: 1} if CONTRIB in domains else {}
    result = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=[*initializers, *constants.initializers],
        opset_imports={"": graph.opset_imports[""], **contrib},
        name=graph.name,
    )
    return ir.Model(result, ir_version=model.ir_version, producer_name=model.producer_name)


def _all(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Give nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _all(attribute.as_graph())
