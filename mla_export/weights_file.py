"""The weights file: every weight in its place, streamed from a checkpoint, one piece in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.journal import Journal
from mla_export.layout import ALIGNMENT, Layout, Parameter, Weight
from mla_export.quantiser import Quantiser, WeightErrors, searched
from mla_export.quantize.pack import packed
from mla_graphs.storage import Storage
from mla_runtime.errors import ExportError
from mla_runtime.manifest import FileEntry

_TORCH = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def write(
    journal: Journal,
    layout: Layout,
    pieces: Callable[[str], Iterator[Tensor]],
    advance: Callable[[int], None],
    quantiser: Quantiser = searched,
    errors: WeightErrors | None = None,
) -> FileEntry:
    """Write the weights file of `journal` and flush it to the disk; `advance` is told the bytes written.

    What the journal knows to be finished is left as it is. `pieces` gives the data of any other parameter
    along its first axis, `quantiser` rounds what is in codes, in the order of the file; `errors` is
    told what that changed, in an earlier run too. Raises `ExportError`
    where a value is not finite in the weight's type, naming the weight.
    """
    places = {(weight.parameter, weight.part): weight for weight in layout.weights}
    errors = WeightErrors() if errors is None else errors
    quantiser = errors.watch(quantiser)
    file, digest, known = journal.open()
    finished = len(known)
    for parameter, sums in zip(layout.parameters, known, strict=False):
        if sums is not None:
            errors.restore(parameter.name, sums)
    with file:
        left = {parameter.name for parameter in layout.parameters[finished:]}
        advance(sum(weight.nbytes for weight in layout.weights if weight.parameter not in left))

        def put(weight: Weight, chunks: Iterator[memoryview]) -> None:
            done = 0
            for data in chunks:
                file.write(data)
                digest.update(data)
                done += data.nbytes
                advance(data.nbytes)
            if done != weight.nbytes:
                raise ValueError(f"{weight.name}: {done} bytes were made for a weight of {weight.nbytes}")
            padding = bytes(-done % ALIGNMENT)
            file.write(padding)
            digest.update(padding)

        for parameter in layout.parameters[finished:]:
            made = pieces(parameter.name)
            if parameter.storage is None:
                weight = places[parameter.name, "values"]
                put(weight, (_floats(weight, piece) for piece in made))
            else:
                scales: list[Tensor] = []  # a small part of the codes, which are written as they are made
                codes = _codes(parameter, parameter.storage, made, scales, quantiser)
                put(places[parameter.name, "codes"], codes)
                put(places[parameter.name, "scales"], (_bytes(part) for part in scales))
            file.flush()
            journal.add(parameter.name, file.tell(), digest, errors.sums(parameter.name))
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def _codes(
    parameter: Parameter,
    storage: Storage,
    pieces: Iterator[Tensor],
    scales: list[Tensor],
    quantiser: Quantiser,
) -> Iterator[memoryview]:
    """Quantise a parameter piece by piece; give the codes, and put the scales aside."""
    stacked = bool(parameter.matrix.stack)
    for index, piece in enumerate(pieces):
        matrix = piece if parameter.matrix.table else piece.reshape(piece.shape[-2:]).T
        found = quantiser(parameter, matrix, index if stacked else None)
        codes, own = packed(storage, found, stacked=stacked)
        scales.append(own)
        yield _bytes(codes)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().numpy().reshape(-1).view(np.uint8).data


def _floats(weight: Weight, piece: Tensor) -> memoryview:
    dtype = _TORCH[weight.dtype]
    # Transposed first, in the few bytes it has: three times faster than transposing and widening at once.
    target = piece.contiguous().to(dtype)
    if not torch.isfinite(torch.stack(torch.aminmax(target))).all():  # the extremes: no mask in memory
        largest = piece.abs().max().item()
        name = str(dtype).removeprefix("torch.")
        msg = (
            f"{weight.name}: the largest value, {largest:.4g}, is not finite in {name} "
            f"(limit {torch.finfo(dtype).max:.4g}); export with --dtype fp32"
        )
        raise ExportError(msg)
    return _bytes(target)
