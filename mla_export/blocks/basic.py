"""Recording `mla::` operators during a trace, and the two layers that every block is built from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mla_graphs import ops

Shape = Sequence[int | torch.SymInt]


def emit(
    op_type: str,
    inputs: Sequence[Tensor | None],
    name: str,
    *results: tuple[torch.dtype, Shape],
    **attributes: Any,
) -> list[Tensor]:
    """Record one operator of `mla_graphs.ops`; a result is a (type, shape). Gives the results' values."""
    operator = ops.OPERATORS[op_type]
    assert set(attributes) == set(operator.attributes), (op_type, attributes)  # noqa: S101 - our own calls
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{ops.DOMAIN}::{op_type}",
        inputs,
        {"name": name, **attributes},
        dtypes=[dtype for dtype, _ in results],
        shapes=[tuple(shape) for _, shape in results],
        version=ops.VERSION,
    )
    return list(outputs)


def weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """Declare a parameter; while tracing it has a shape and no data."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """y = x · weight + bias, with `weight` [in, out]."""

    def __init__(self, name: str, inputs: int, outputs: int, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.name = name
        self.weight = weight(inputs, outputs, dtype=dtype)
        self.bias = weight(outputs, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        inputs = (x, self.weight) if self.bias is None else (x, self.weight, self.bias)
        return emit("Linear", inputs, self.name, (x.dtype, (*x.shape[:-1], self.weight.shape[1])))[0]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, name: str, width: int, epsilon: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.epsilon = epsilon
        self.weight = weight(width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape of x."""
        return emit("RMSNorm", (x, self.weight), self.name, (x.dtype, x.shape), epsilon=self.epsilon)[0]
