"""Tracing each kind of block once with torch's exporter, without computing or allocating anything."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mla_export.blocks import DecoderLayer, Head, Prelude
from mla_export.plan import OPSET, Plan
from mla_graphs.geometry import LayerKind, Phase

# Sizes that stand for the contract's symbols while tracing. They differ from each other and are not
# small, so that the exporter neither merges two symbols nor specialises on 0 or 1.
_EXAMPLE = {"B": 3, "S": 5, "T": 7, "N": 11, "B*S": 15, "T + S": 12}


@dataclass(frozen=True, slots=True)
class Traced:
    """A block as a graph of `mla::` operators; its parameters are the graph's initializers."""

    graph: ir.Graph

    @property
    def parameters(self) -> dict[str, ir.Value]:
        """Parameter name within the block (`attention.w_uk`) to its value, which has type and shape."""
        return dict(self.graph.initializers)


@dataclass(frozen=True, slots=True)
class TracedModel:
    """Every kind of block that a geometry needs, traced; a layer for the step and for the prompt."""

    prelude: Traced
    layers: dict[tuple[LayerKind, Phase], Traced]
    head: Traced

    def layer(self, kind: LayerKind, phase: Phase) -> Traced:
        """Give a layer for a phase: the step's own where the prompt has no other."""
        return self.layers.get((kind, phase), self.layers[kind, "step"])


_Input = tuple[str, torch.dtype, tuple[int | str, ...]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on what is not installed, and torch's on itself, from the user."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _trace(block: nn.Module, inputs: Sequence[_Input], outputs: Sequence[str]) -> Traced:
    dims = {symbol: torch.export.Dim(f"d{i}") for i, symbol in enumerate(_EXAMPLE)}
    with FakeTensorMode():
        example = tuple(
            torch.empty([_EXAMPLE[d] if isinstance(d, str) else d for d in shape], dtype=dtype)
            for _, dtype, shape in inputs
        )
    dynamic = [{i: dims[d] for i, d in enumerate(shape) if isinstance(d, str)} for _, _, shape in inputs]
    takes_rest = isinstance(block, DecoderLayer)
    with _quiet():
        program = torch.export.export(
            block,
            example,
            dynamic_shapes=(*dynamic[:3], tuple(dynamic[3:])) if takes_rest else tuple(dynamic),
            strict=False,
        )
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[name for name, _, _ in inputs],
            output_names=list(outputs),
            optimize=False,
            verbose=False,
        )
    if exported is None:
        raise RuntimeError("the exporter gave no program")
    graph = exported.model.graph
    _name_symbols(graph, [shape for _, _, shape in inputs])
    return Traced(graph)


def _name_symbols(graph: ir.Graph, shapes: Sequence[tuple[int | str, ...]]) -> None:
    """Call the exporter's s13, s70, … by the contract's symbols, in every value."""
    names = {
        str(dim): str(symbol)
        for value, shape in zip(graph.inputs, shapes, strict=True)
        for dim, symbol in zip(value.shape or (), shape, strict=True)
        if isinstance(symbol, str)
    }
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                dim
                if isinstance(dim, int)
                else re.sub(r"s\d+", lambda match: names.get(match[0], match[0]), str(dim))
                for dim in value.shape
            )


def trace(plan: Plan) -> TracedModel:
    """Trace the prelude, one layer of each kind, and the head: the time does not grow with the layers."""
    g, real, int64 = plan.geometry, plan.torch_dtype, torch.int64
    cache = [spec for spec in plan.contract.cache if spec.layer == 0]
    past: list[_Input] = [
        (f"past.{spec.kind}", getattr(torch, spec.past.dtype), spec.past.shape) for spec in cache
    ]
    half = g.qk_rope_head_dim // 2
    # Only the factored form attends to a prompt in another way than to a step.
    phases: tuple[Phase, ...] = ("step", "prompt") if plan.absorb == "factored" else ("step",)
    with FakeTensorMode():
        prelude = Prelude(g, real)
        layers = {
            (kind, phase): DecoderLayer(plan, kind, phase)
            for kind in sorted(set(g.layer_kinds))
            for phase in phases
        }
        head = Head(g, real)
    hidden: _Input = ("hidden", real, ("B", "S", g.hidden_size))
    masks = ("visible", "counts", "split", "fold", "unfold")
    layer_inputs: list[_Input] = [
        hidden,
        ("cos", torch.float32, ("B", 1, "S", half)),
        ("sin", torch.float32, ("B", 1, "S", half)),
        ("visible", torch.bool, ("B", 1, "S", "T + S")),
        ("counts", torch.bool, ("B*S",)),
        ("split", int64, (1,)),
        ("fold", int64, (3,)),
        ("unfold", int64, (4,)),
        *past,
    ]
    return TracedModel(
        prelude=_trace(
            prelude,
            [
                ("input_ids", int64, ("B", "S")),
                ("position_ids", int64, ("B", "S")),
                ("past_lengths", int64, ("B",)),
                ("new_lengths", int64, ("B",)),
                past[0],
            ],
            ["hidden", "cos", "sin", *masks],
        ),
        layers={
            key: _trace(layer, layer_inputs, ["next_hidden", *(f"present.{spec.kind}" for spec in cache)])
            for key, layer in layers.items()
        },
        head=_trace(head, [hidden, ("rows", int64, ("N",))], ["logits"]),
    )
