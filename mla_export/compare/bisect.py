"""Inside the layer that parts: from one `mla::` operator's output to the next.

Each operator is computed by its definition (`mla_export.operators`) from the inputs that the side itself gave
it and the checkpoint's weights, so that an error further up is not counted again: what is left is the
operator's own. What that may be is a multiple of what the same definition errs in the side's precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mla_export import operators
from mla_export.assemble import assemble
from mla_export.compare.blocks import calls, open_values
from mla_export.compare.held import Rowed
from mla_export.compare.operator_error import Allowed, Parameters
from mla_export.compare.result import Bisection, OperatorError, Side
from mla_export.compare.sides import CPU, Job
from mla_export.geometry_json import geometry_from
from mla_export.layout import layout
from mla_export.open_graph import OneSequence, OpenGraph
from mla_export.plan import Plan
from mla_export.reference import Reference
from mla_export.trace import trace
from mla_graphs import ops
from mla_graphs.contract import CacheTypes
from mla_runtime.bundle import Bundle
from mla_runtime.manifest import Phase

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_SHARED = ("rotary_rows", "visibility")  # what all layers read: computed for each, judged with the first


def bisected(side: Side, job: Job, reference: Reference, rowed: Rowed) -> Side:
    """Name the first operator of the layer that parts; a side of which none parts is as it was.

    Where the logits are off and no layer is, the head is looked into.
    """
    if side.verdict != "fail" or side.logits is None or job.backend != CPU:
        return side
    if side.parted is not None:
        where = (side.parted.layer, side.parted.phase, side.parted.prompt, side.parted.position)
        return replace(side, bisection=bisect(job.held, reference, rowed, *where))
    if side.logits.verdict != "fail" or not side.steps:
        return side
    step = max(side.steps, key=lambda found: found.rms).step
    position = len(rowed.prompts[0]) - 1 + step
    return replace(side, bisection=bisect(job.held, reference, rowed, None, "step", 0, position))


def bisect(
    bundle: Bundle,
    reference: Reference,
    rowed: Rowed,
    layer: int | None,
    phase: Phase,
    prompt: int,
    position: int,
) -> Bisection:
    """Hold the operators of `layer` (None: the head) to their definitions, in the run of one token."""
    plan = plan_of(bundle)
    single = bundle.graph("step").file == bundle.graph("prompt").file
    traced = trace(plan)
    model = assemble(plan, "prompt" if single else phase, traced, layout(plan), "weights")
    nodes = [node for node in model.graph if _shared(node) or _judged(node, layer)]
    seen = _Seen(bundle, rowed, prompt, position, nodes)
    parameters = Parameters(bundle.manifest.precision, reference, plan)
    every = _errors(nodes, seen.values, parameters, Allowed(bundle.manifest.precision, plan))
    found = tuple(error for node, error in every if _judged(node, layer))
    first = next((one.name for one in found if one.parted), None)
    if first is None:
        words = (
            "no operator by itself is beyond what is allowed: what parts is how the backend joins them, or "
            "an error that grows from one to the next"
        )
    else:
        words = f"the first operator that parts is {first}"
    return Bisection(layer, seen.phase, prompt, position, found, first, words)


def plan_of(bundle: Bundle) -> Plan:
    """Give the plan that a bundle was made by, with its weights in floats."""
    manifest = bundle.manifest
    geometry = geometry_from(bundle.raw["model"]["geometry"], f"{bundle.path}: model.geometry")
    formats = manifest.precision
    cache = CacheTypes(formats.cache, formats.rope)  # type: ignore[arg-type] # one of the row types
    return Plan(geometry, manifest.absorb, formats.compute, cache, None, manifest.target)  # type: ignore[arg-type]


def _shared(node: ir.Node) -> bool:
    return str(node.name).split(".")[0] in _SHARED


def _judged(node: ir.Node, layer: int | None) -> bool:
    name = str(node.name)
    if layer == 0 and (name == "embed" or _shared(node)):
        return True
    return name.startswith("head." if layer is None else f"layers.{layer}.")


class _Seen:
    """The run that computed a token, with every value of `nodes` that the bundle's graph has in reach."""

    def __init__(
        self, bundle: Bundle, rowed: Rowed, prompt: int, position: int, nodes: list[ir.Node]
    ) -> None:
        row, ids = rowed.rows[prompt], rowed.prompts[prompt]
        sequence, start = OneSequence(bundle, len(row)), 0
        present = [tensor.present for tensor in bundle.cache]
        graphs: dict[Phase, OpenGraph] = {}
        for phase, part in calls(bundle, len(ids), row):
            last = start + len(part) > position
            inputs = sequence.inputs(part, [len(part) - 1])
            if last:
                names = _reachable(bundle, phase, nodes)
                values = open_values(bundle, phase, names).run(names, inputs)
                self.phase: Phase = phase
                self.values: dict[str, Tensor] = {
                    name: torch.from_numpy(np.array(value))
                    for name, value in [*inputs.items(), *zip(names, values, strict=True)]
                }
                return
            if phase not in graphs:
                graphs[phase] = open_values(bundle, phase, [])
            sequence.append(graphs[phase].run(present, inputs))
            start += len(part)
        raise ValueError(f"position {position} is beyond the row")


def _reachable(bundle: Bundle, phase: Phase, nodes: list[ir.Node]) -> list[str]:
    """Name the values that nodes read and give, as far as the bundle's graph has them by name."""
    model = ir.load(bundle.paths[bundle.graph(phase).file])
    there = {str(value.name) for node in model.graph for value in node.outputs}
    wanted = [str(v.name) for node in nodes for v in (*node.inputs, *node.outputs) if v is not None]
    return [name for name in dict.fromkeys(wanted) if name in there]


def _errors(
    nodes: list[ir.Node], seen: Mapping[str, Tensor], parameters: Parameters, allowed: Allowed
) -> Iterator[tuple[ir.Node, OperatorError]]:
    known: dict[str, Tensor] = {}
    for node in nodes:
        inputs: list[Tensor | None] = []
        rounded: list[Tensor | None] = []
        for place, value in enumerate(node.inputs):
            exact = None if value is None else _input(value, seen, known, parameters)
            inputs.append(exact)
            rounded.append(None if exact is None or value is None else parameters.rounded(node, place, exact))
        wanted = operators.compute(node, inputs, "float64")
        for value, result in zip(node.outputs, wanted, strict=True):
            known[str(value.name)] = result
        if node.domain != ops.DOMAIN:
            continue
        peer = operators.compute(node, rounded, parameters.precision)
        got = [seen.get(str(value.name)) for value in node.outputs]
        yield node, allowed.judge(node, got, wanted, peer, inputs)


def _input(
    value: ir.Value, seen: Mapping[str, Tensor], known: Mapping[str, Tensor], parameters: Parameters
) -> Tensor:
    """Give what the side gave an operator: its own value where it can be seen, else what it should be."""
    name = str(value.name)
    if value.is_initializer():
        return parameters(name)
    # a target has forms of its own for what a query sees
    own = name in seen and not name.startswith("visibility.")
    return seen[name] if own else known[name]
