from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_export.quantize import quantize_blocks
from mla_export.quantize.blocks import round_to, search_scales
from mla_graphs.storage import Bits
from mla_runtime.errors import ExportError

BITS: list[Bits] = [4, 8]
GROUPS = [32, 128]


def weights(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def error(weight: torch.Tensor, values: torch.Tensor) -> float:
    return float((weight.double() - values.double()).pow(2).mean())


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    group=st.sampled_from(GROUPS),
    rows=st.integers(1, 5),
    inputs=st.integers(1, 300),
    seed=st.integers(0, 2**32),
    magnitude=st.floats(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_code_is_the_nearest_one(
    bits: Bits, group: int, rows: int, inputs: int, seed: int, magnitude: float, dtype: torch.dtype
) -> None:
    weight = (weights(rows, inputs, seed) ** 3 * 10.0**magnitude).to(dtype)
    found = quantize_blocks(weight, bits, group)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = -(-inputs // group)
    assert found.codes.shape == (rows, groups * group)
    assert found.scales.shape == (rows, groups)
    assert int(found.codes.min()) >= low
    assert int(found.codes.max()) <= high
    assert not found.codes[:, inputs:].any()  # the padding
    # within the range the error is at most half a step; beyond it, the nearest end is taken
    steps = found.scales.double().repeat_interleave(group, 1)[:, :inputs]
    ends = torch.stack((steps * low, steps * high)).sort(dim=0).values
    nearest = weight.double().clamp(ends[0], ends[1])
    off = (found.dequantize().double() - nearest).abs()
    assert bool((off <= steps.abs() * 0.5 * (1 + 1e-5)).all())


@pytest.mark.parametrize("group", GROUPS)
def test_the_search_is_near_an_exhaustive_one(group: int) -> None:
    weight = weights(64, 256)
    found = error(weight, quantize_blocks(weight, 4, group).dequantize())
    groups = weight.reshape(-1, group)
    best = torch.full((len(groups),), torch.inf)
    largest = groups.abs().amax(1)
    for ratio in torch.linspace(0.5, 1.2, 141):
        for sign in (1, -1):
            scale = (sign * ratio * largest / 8)[:, None]
            values = (groups / scale).round().clamp(-8, 7) * scale
            best = torch.minimum(best, (groups - values).pow(2).mean(1))
    assert found <= 1.05 * float(best.mean())
    plain = largest[:, None] / 7
    rounded = (groups / plain).round() * plain
    assert found <= 0.78 * error(groups, rounded)  # what the search and the code -8 are worth


@pytest.mark.parametrize("bits", BITS)
def test_values_on_a_grid_come_back_exactly(bits: Bits) -> None:
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (7, 96), generator=torch.Generator().manual_seed(1))
    codes[:, ::32] = low  # so that the range is known
    weight = codes * torch.tensor([0.5, -0.5, 2.0]).repeat_interleave(32)
    found = quantize_blocks(weight, bits, 32)
    torch.testing.assert_close(found.dequantize(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_and_numbers_without_a_reciprocal_become_zero(bits: Bits) -> None:
    weight = weights(3, 96)
    weight[:, 32:64] = 0
    weight[:, 64:] = 1e-42
    found = quantize_blocks(weight, bits, 32)
    assert not found.codes[:, 32:].any()
    assert not found.scales[:, 1:].any()
    assert found.codes[:, :32].any()


def test_one_outlier_ruins_only_its_own_group() -> None:
    weight = weights(2, 96)
    weight[0, 40] = 1e4
    found, clean = quantize_blocks(weight, 4, 32), quantize_blocks(weights(2, 96), 4, 32)
    assert float(found.dequantize()[0, 40]) == pytest.approx(1e4, rel=1e-5)
    torch.testing.assert_close(found.dequantize()[1], clean.dequantize()[1], rtol=0, atol=0)
    torch.testing.assert_close(found.dequantize()[0, :32], clean.dequantize()[0, :32], rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 99])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float, at: int) -> None:
    weight = weights(3, 100)
    weight[1, at] = value
    with pytest.raises(ExportError, match=r"down_proj: holds values that are not finite"):
        quantize_blocks(weight, 4, 32, name="down_proj")


def test_a_scale_that_float16_cannot_hold_is_refused_by_name() -> None:
    weight = weights(3, 64) * 1e6
    with pytest.raises(ExportError, match=r"o_proj: a scale is .* above the 6.55e\+04 of float16"):
        quantize_blocks(weight, 4, 32, scale_dtype=torch.float16, name="o_proj")
    quantize_blocks(weight, 4, 32)


def test_codes_are_taken_under_the_rounded_scales() -> None:
    weight = weights(16, 128)
    found = quantize_blocks(weight, 8, 128, scale_dtype=torch.float16)
    assert found.scales.dtype == torch.float16
    off = (found.dequantize() - weight).abs()
    assert bool((off <= found.scales.float().abs() * 0.5 * (1 + 1e-5)).all())


def test_importance_moves_the_error_to_inputs_that_count_less() -> None:
    weight = weights(64, 128)
    values, importance = weight[:, None], torch.ones(1, 1, 128)
    importance[..., :16] = 100

    def errors(importance: torch.Tensor | None) -> float:
        scales = search_scales(values, 4, importance, torch.float32, "weight")
        found = round_to(values, scales, 4) * scales[..., None]
        return error(values[..., :16], found[..., :16])

    assert errors(importance) < 0.95 * errors(None)
    assert errors(torch.ones(1, 1, 128)) == pytest.approx(errors(None), rel=1e-5)


def test_the_same_bytes_every_time_and_for_every_row_by_itself() -> None:
    weight = weights(3000, 160)  # several chunks
    first, second = quantize_blocks(weight, 4, 32), quantize_blocks(weight.clone(), 4, 32)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)
    alone = quantize_blocks(weight[2345:2346], 4, 32)
    assert torch.equal(alone.codes[0], first.codes[2345])
    assert torch.equal(alone.scales[0], first.scales[2345])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positive_scales_are_above_zero_and_lose_little(bits, dtype):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.0
    weight[4] *= 1e-9  # in float16 its scale is too small
    found = quantize_blocks(weight, bits, 32, scale_dtype=dtype, positive=True)
    assert (found.scales > 0).all()
    assert found.codes.min() == -(2 ** (bits - 1))  # the lowest code is for what is negative
    free = quantize_blocks(weight, bits, 32, scale_dtype=dtype)
    errors = [(q.dequantize() - weight).square().sum() for q in (found, free)]
    assert errors[1] < errors[0] < 1.2 * errors[1]
    assert found.dequantize()[3].abs().max() == 0
