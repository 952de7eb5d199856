"""A whole model from traced blocks: as many layers as the geometry has, over one table of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from mla_export.layout import Layout, Weight
from mla_export.plan import Plan
from mla_export.trace import Traced, TracedModel
from mla_graphs import ops
from mla_graphs.contract import TensorSpec
from mla_graphs.geometry import Phase

# Newer than this, and the runtimes of older Pythons and devices do not load the graph.
IR_VERSION = 10


def assemble(plan: Plan, phase: Phase, traced: TracedModel, layout: Layout, location: str) -> ir.Model:
    """Join the traced blocks into the model of a phase, in `mla::` operators, with the contract's signature.

    Initializers point into the file `location`; no data is read or written here.
    """
    stamp = _Stamp(layout, location)
    geometry, signature = plan.geometry, plan.contract
    inputs = {spec.name: _input(spec) for spec in signature.inputs}
    past = {spec.past.name: _input(spec.past) for spec in signature.cache}
    shown = past[signature.cache[0].past.name]
    hidden, cos, sin, *masks = stamp(
        traced.prelude,
        [inputs[name] for name in ("input_ids", "position_ids", "past_lengths", "new_lengths")] + [shown],
        "",
        {},
    )
    present: list[ir.Value] = []
    for i, kind in enumerate(geometry.layer_kinds):
        own = [spec for spec in signature.cache if spec.layer == i]
        block_inputs = [hidden, cos, sin, *masks, *(past[spec.past.name] for spec in own)]
        hidden, *rows = stamp(traced.layer(kind, phase), block_inputs, f"layers.{i}.", {})
        for spec, row in zip(own, rows, strict=True):
            row.name = spec.present.name
            row.shape = ir.Shape(spec.present.shape)
            present.append(row)
    (logits,) = stamp(traced.head, [hidden, inputs["logit_rows"]], "head.", tied_names(plan))
    logits.name = "logits"
    logits.shape = ir.Shape(signature.outputs[0].shape)
    graph = _graph(plan, [*inputs.values(), *past.values()], [logits, *present], stamp)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="mla-export")


def assemble_block(
    plan: Plan,
    block: Traced,
    prefix: str,
    layout: Layout,
    location: str,
    renamed: Mapping[str, str] | None = None,
) -> ir.Model:
    """Make a model of one traced block: inputs as the block has them, outputs in the block's order.

    Its parameters are found under `prefix`, or `renamed`, and its nodes are named as in the whole model.
    """
    stamp = _Stamp(layout, location)
    inputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in block.graph.inputs]
    outputs = stamp(block, inputs, prefix, renamed or {})
    for output, traced in zip(outputs, block.graph.outputs, strict=True):
        output.name = f"{prefix}{traced.name}"  # an operator's own value may have its name when written out
    graph = _graph(plan, inputs, outputs, stamp)
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="mla-export")


def tied_names(plan: Plan) -> dict[str, str]:
    """Give the head's parameters that have another name in the model: a tied head's is the embedding's."""
    return {"weight": "embed.weight"} if plan.geometry.tie_word_embeddings else {}


def _graph(plan: Plan, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], stamp: _Stamp) -> ir.Graph:
    return ir.Graph(
        inputs,
        outputs,
        nodes=stamp.nodes,
        initializers=list(stamp.initializers.values()),
        opset_imports={"": plan.opset, ops.DOMAIN: ops.VERSION},
        name=f"{plan.geometry.family}.{plan.absorb}",
    )


def _initializer(weight: Weight, location: str) -> ir.Value:
    shape = ir.Shape(weight.shape)
    tensor = ir.ExternalTensor(
        location, weight.offset, weight.nbytes, weight.dtype, shape=shape, name=weight.name
    )
    return ir.Value(name=weight.name, shape=shape, type=ir.TensorType(weight.dtype), const_value=tensor)


def _input(spec: TensorSpec) -> ir.Value:
    dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(dtype))


class _Stamp:
    """Copies a traced block into the model under a prefix, as often as it is called."""

    def __init__(self, layout: Layout, location: str) -> None:
        self.initializers = {weight.name: _initializer(weight, location) for weight in layout.weights}
        self.nodes: list[ir.Node] = []
        self._parameters = {parameter.name: parameter for parameter in layout.parameters}
        self._written: dict[str, ir.Value] = {}

    def __call__(
        self, block: Traced, inputs: Sequence[ir.Value], prefix: str, renamed: Mapping[str, str]
    ) -> list[ir.Value]:
        """Copy `block`, fed with `inputs`, its parameters found under `prefix` or `renamed`."""
        values: dict[ir.Value | None, ir.Value | None] = {None: None}
        values.update(zip(block.graph.inputs, inputs, strict=True))
        for name, value in block.parameters.items():
            values[value] = self._parameter(renamed.get(name, prefix + name))
        for number, node in enumerate(block.graph):
            name = prefix + _name(node, number)
            attributes = dict(node.attributes)
            if node.domain == ops.DOMAIN:
                attributes["name"] = ir.AttrString("name", name)
            outputs = [
                ir.Value(name=full, shape=value.shape, type=value.type)
                for full, value in zip(_output_names(node, name), node.outputs, strict=True)
            ]
            copy = ir.Node(
                node.domain,
                node.op_type,
                [values[value] for value in node.inputs],
                attributes,
                outputs=outputs,
                name=name,
            )
            values.update(zip(node.outputs, outputs, strict=True))
            self.nodes.append(copy)
        return [out for output in block.graph.outputs if (out := values[output]) is not None]

    def _parameter(self, name: str) -> ir.Value:
        """Give a parameter's value: an initializer, or what an operator makes of codes and scales."""
        parameter = self._parameters[name]
        storage = parameter.storage
        if storage is None:
            return self.initializers[name]
        if name not in self._written:
            inputs = [self.initializers[f"{name}.codes"], self.initializers[f"{name}.scales"]]
            attributes: dict[str, str | int] = {"name": name, **storage.attributes(parameter.matrix)}
            made = ir.Value(name=name, shape=ir.Shape(parameter.shape), type=ir.TensorType(parameter.dtype))
            self.nodes.append(
                ir.node(storage.operator, inputs, attributes, domain=ops.DOMAIN, outputs=[made], name=name)
            )
            self._written[name] = made
        return self._written[name]


def _name(node: ir.Node, number: int) -> str:
    """Where a node is in its block: an operator says it itself, the rest by their module."""
    if node.domain == ops.DOMAIN:
        return node.attributes["name"].as_string()
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    modules = [scope for scope in scopes.strip("[]").replace("'", "").split(", ")[:-1] if scope]
    return ".".join([*modules[-1:], f"{node.op_type.lower()}_{number}"])


def _output_names(node: ir.Node, name: str) -> list[str]:
    if len(node.outputs) == 1:
        return [name]
    if node.domain == ops.DOMAIN:
        return [f"{name}.{output}" for output in ops.OPERATORS[node.op_type].outputs]
    return [f"{name}.{i}" for i in range(len(node.outputs))]
