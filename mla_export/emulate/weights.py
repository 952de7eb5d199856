"""The initializers of a bundle's graphs as tensors that lie on its mapped weights file.

Nothing is read before it is used, and what was read is the system's to forget: a model may be larger than
memory.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError


class Weights:
    """Initializers of any graph of `bundle`, whose files must have been hashed.

    Codes of 4 bits are given as int8 (or uint8), a code an element.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._files: dict[str, npt.NDArray[np.uint8]] = {}

    def __call__(self, value: ir.Value) -> Tensor:
        """Give an initializer; raises BackendError for one without a value."""
        tensor = value.const_value
        if tensor is None:
            raise BackendError(f"{self._bundle.path}: initializer {value.name} has no value; export it again")
        shape = [int(size) for size in tensor.shape.numpy()]
        raw = self._mapped(tensor) if isinstance(tensor, ir.ExternalTensor) else np.frombuffer(
            tensor.tobytes(), np.uint8
        )  # fmt: skip
        if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
            return _tensor(_unpacked(raw, signed=tensor.dtype == ir.DataType.INT4)[: np.prod(shape)], shape)
        return _tensor(raw.view(tensor.dtype.numpy()), shape)

    def _mapped(self, tensor: ir.ExternalTensor) -> npt.NDArray[np.uint8]:
        name = str(tensor.location)
        if name not in self._files:
            self._files[name] = np.memmap(self._bundle.paths[name], np.uint8, "r")
        start = tensor.offset or 0
        return self._files[name][start : start + tensor.nbytes]


def _tensor(array: npt.NDArray[Any], shape: list[int]) -> Tensor:
    with warnings.catch_warnings():
        # torch says that it could write to what is mapped for reading; nothing here does
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array).reshape(shape)


def _unpacked(raw: npt.NDArray[np.uint8], *, signed: bool) -> npt.NDArray[Any]:
    """Give the codes of bytes that hold two each, the first in the low half."""
    codes = np.stack((raw & 15, raw >> 4), axis=-1).reshape(-1)
    return ((codes ^ 8).astype(np.int8) - 8).astype(np.int8) if signed else codes
