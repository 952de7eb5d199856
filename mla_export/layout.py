"""Where each weight of a model lies in the weights file, and as what it is stored.

All of it follows from the plan, so that the size of an export is known before anything is traced or read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import nn

from mla_export.blocks import DecoderLayer, Head, Prelude
from mla_export.plan import Plan
from mla_export.quantize.rule import is_table
from mla_graphs.geometry import Geometry
from mla_graphs.storage import Matrix, Storage

# Weights start at multiples of a page, so that a runtime can map them.
ALIGNMENT = 4096

_TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}
_CODES = {"uint8": ir.DataType.UINT8, "int8": ir.DataType.INT8, "int4": ir.DataType.INT4}

Part = Literal["values", "codes", "scales"]


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the weights file; its place is known before its data.

    `parameter` is what the blocks call it. A parameter in floats is one tensor of that name; one in
    codes is two, `.codes` and `.scales`.
    """

    name: str
    parameter: str
    part: Part
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data, without padding."""
        return math.ceil(math.prod(self.shape) * self.dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the blocks and how it is stored; `storage` is None for floats.

    `dtype` is that of the floats: of the parameter itself, or of its scales.
    """

    name: str
    shape: tuple[int, ...]
    dtype: ir.DataType
    storage: Storage | None

    @property
    def matrix(self) -> Matrix:
        """Give its shape as a matrix; of embedding and head rows are outputs."""
        return Matrix(self.shape, is_table(self.name))

    def tensors(self, offset: int) -> list[Weight]:
        """Give what is written for it, from `offset` on."""
        if self.storage is None:
            return [Weight(self.name, self.name, "values", self.dtype, self.shape, offset)]
        made, scales = self.storage.codes(self.matrix), self.storage.scales(self.matrix)
        codes = Weight(f"{self.name}.codes", self.name, "codes", _CODES[made.dtype], made.shape, offset)
        after = offset + aligned(codes.nbytes)
        return [codes, Weight(f"{self.name}.scales", self.name, "scales", self.dtype, scales, after)]


@dataclass(frozen=True, slots=True)
class Layout:
    """All weights of a model, in the order in which they are used and written."""

    parameters: tuple[Parameter, ...]
    weights: tuple[Weight, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights file."""
        last = self.weights[-1]
        return last.offset + aligned(last.nbytes)


def aligned(nbytes: int) -> int:
    """Round up to a whole number of pages."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def layout(plan: Plan) -> Layout:
    """Give every weight of the model its form and its place."""
    parameters: dict[str, Parameter] = {}
    weights: list[Weight] = []
    offset = 0
    for name, declared in _declared(plan):
        if name in parameters:
            continue  # a tied head reads the embedding's table
        shape = tuple(declared.shape)
        parameter = Parameter(name, shape, _TYPES[declared.dtype], _storage(plan, name, shape))
        parameters[name] = parameter
        made = parameter.tensors(offset)
        weights += made
        offset = made[-1].offset + aligned(made[-1].nbytes)
    return Layout(tuple(parameters.values()), tuple(weights))


def _declared(plan: Plan) -> list[tuple[str, nn.Parameter]]:
    """Give the parameters of all blocks by their names in the model, without data."""
    geometry, dtype = plan.geometry, plan.torch_dtype
    with torch.device("meta"):
        prelude, head = Prelude(geometry, dtype), Head(geometry, dtype)
        # both phases read the same parameters
        layers = {kind: DecoderLayer(plan, kind, "step") for kind in set(geometry.layer_kinds)}
    named = list(prelude.named_parameters())
    for i, kind in enumerate(geometry.layer_kinds):
        named += [(f"layers.{i}.{name}", value) for name, value in layers[kind].named_parameters()]
    return [*named, *((head_name(geometry, name), value) for name, value in head.named_parameters())]


def head_name(geometry: Geometry, name: str) -> str:
    """Give a parameter of the head block its name in the model."""
    return "embed.weight" if name == "weight" and geometry.tie_word_embeddings else f"head.{name}"


def _storage(plan: Plan, name: str, shape: tuple[int, ...]) -> Storage | None:
    if plan.scheme is None:
        return None
    return plan.scheme.storage(name, Matrix(shape, is_table(name)), plan.geometry)
