"""The errors of rounded weights, as an export reports them."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from mla_export.layout import Parameter
from mla_export.quantiser import WeightErrors, searched
from mla_graphs.storage import Blocks

STACK = Parameter("layers.1.moe.experts.down", (3, 100, 4000), ir.DataType.FLOAT, Blocks(4, 32))
TABLE = Parameter("head.weight", (500, 100), ir.DataType.FLOAT16, Blocks(8, 32))


def test_errors_are_shares_of_the_weights_and_add_up():
    errors = WeightErrors()
    quantiser = errors.watch(searched)
    generator = torch.Generator().manual_seed(0)
    experts = [size * torch.randn(4000, 100, generator=generator) for size in (1.0, 2.0, 3.0)]
    table = torch.randn(500, 100, generator=generator).to(torch.bfloat16)
    found = [quantiser(STACK, matrix, expert) for expert, matrix in enumerate(experts)]
    tables = [quantiser(TABLE, table, None)]
    assert tables[0].scales.dtype == torch.float16
    weights, wide = torch.cat(experts).double(), table.double()
    stacked = torch.cat([one.dequantize() for one in found]).double() - weights
    of_table = tables[0].dequantize().double() - wide
    assert errors.by_parameter == {
        STACK.name: pytest.approx(float(stacked.norm() / weights.norm()), rel=1e-5),
        TABLE.name: pytest.approx(float(of_table.norm() / wide.norm()), rel=1e-5),
    }
    total = (stacked.square().sum() + of_table.square().sum()) / (
        weights.square().sum() + wide.square().sum()
    )
    assert errors.overall == pytest.approx(float(total.sqrt()), rel=1e-5)


def test_nothing_and_zeros_have_no_error():
    errors = WeightErrors()
    assert (errors.by_parameter, errors.overall) == ({}, 0.0)
    errors.watch(searched)(TABLE, torch.zeros(500, 100), None)
    assert (errors.by_parameter, errors.overall) == ({TABLE.name: 0.0}, 0.0)
