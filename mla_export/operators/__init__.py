"""The `mla::` operators computed in torch by their definitions (`mla_graphs.ops`), in a chosen precision.

Nothing is shared with the lowerings, so that these can be held against it: in float64 for what is right, and
in 16 bits, every result rounded, for what a device with such numbers gives. A graph is computed node by node,
and each node's outputs can be looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.operators import attention, codes, dense, experts, standard
from mla_export.operators.arithmetic import Arithmetic, Call
from mla_export.rounding import Precision
from mla_graphs import ops

__all__ = ["OPERATORS", "Precision", "compute", "run"]

OPERATORS: dict[str, Callable[[Call], list[Tensor]]] = {
    **dense.RULES,
    **attention.RULES,
    **codes.RULES,
    **experts.RULES,
}


@torch.inference_mode()
def compute(node: ir.Node, inputs: Sequence[Tensor | None], precision: Precision) -> list[Tensor]:
    """Compute one `mla::` operator, or a standard node of a traced block, from inputs in the node's order.

    float64: everything in float64. float32: in float32. float16 and bfloat16: the result of each primitive
    (matmul, elementwise operator, softmax, as the portable graphs write them) is rounded to that type, sums
    inside a matmul are float32 as tensor cores keep them, and what `mla_graphs.ops` says is computed in
    float32 (norms, rotation, softmax, the gate) is. Inputs of any float type are taken, and outputs are of
    the precision's own type, those that are float32 in every graph (rotary rows, the gate's weights, scales,
    logits) of float32, or float64 in float64.

    Raises ValueError for an absent input that is needed and a node that blocks are not traced to.
    """
    rules = OPERATORS if node.domain == ops.DOMAIN else standard.RULES
    if node.domain not in (ops.DOMAIN, "") or node.op_type not in rules:
        raise ValueError(f"{node.name}: {node.domain}::{node.op_type} is not an operator of a traced block")
    return rules[node.op_type](Call(node, inputs, Arithmetic.of(precision)))


def run(
    graph: ir.Graph, inputs: Mapping[str, Tensor], weights: Callable[[str], Tensor], precision: Precision
) -> Iterator[tuple[ir.Node, list[Tensor]]]:
    """Compute a graph of `mla::` operators node by node, and give each node with its outputs.

    `inputs` has the graph's inputs by name, `weights` gives an initializer by name, once. A value is dropped
    after its last use. Raises ValueError for a missing input, and what `compute` raises.
    """
    missing = [str(value.name) for value in graph.inputs if str(value.name) not in inputs]
    if missing:
        raise ValueError(f"{graph.name}: no input {', '.join(missing)}")
    left = Counter(value for node in graph for value in node.inputs)
    known: dict[ir.Value | None, Tensor] = {value: inputs[str(value.name)] for value in graph.inputs}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known and value.is_initializer():
                known[value] = weights(str(value.name))
        outputs = compute(node, [known.get(value) for value in node.inputs], precision)
        known.update(zip(node.outputs, outputs, strict=True))
        yield node, outputs
        left.subtract(node.inputs)
        for value in {*node.inputs, *node.outputs}:
            if not left[value]:
                known.pop(value, None)
