from __future__ import annotations

import pytest
import torch

from mla_export.quantize import Quantized, Statistics, quantize_blocks, quantize_calibrated
from mla_graphs.storage import Bits
from mla_runtime.errors import ExportError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activations(tokens: int, inputs: int, seed: int = 1) -> torch.Tensor:
    """Correlated inputs, of different sizes, as the channels of a trained model are."""
    mixing = random(inputs // 2, inputs) * torch.linspace(0.1, 2, inputs)
    return random(tokens, inputs // 2, seed=seed) @ mixing + 0.3 * random(tokens, inputs, seed=seed + 1)


def statistics(rows: torch.Tensor) -> Statistics:
    found = Statistics(rows.shape[1])
    for part in rows.split(1000):
        found.add(part)
    return found


def output_error(weight: torch.Tensor, found: Quantized, rows: torch.Tensor) -> float:
    return float((rows.double() @ (weight - found.dequantize()).double().T).pow(2).mean())


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_on_unseen_tokens_are_nearer_than_by_rounding(bits: Bits, group: int) -> None:
    weight = random(48, 200)
    found = quantize_calibrated(weight, bits, group, statistics(activations(4000, 200)))
    plain = quantize_blocks(weight, bits, group)
    unseen = activations(1000, 200, seed=7)
    assert output_error(weight, found, unseen) < 0.55 * output_error(weight, plain, unseen)


def test_it_is_near_the_best_of_all_codes() -> None:
    """Two inputs a row, one group: every pair of codes is tried under the scale that was found."""
    rows = activations(500, 2)
    weight = random(20, 2, seed=3)
    found = quantize_calibrated(weight, 4, 32, statistics(rows))
    hessian = (rows.T @ rows / len(rows)).double()
    grid = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).double()
    total = best = 0.0
    for row, codes, scale in zip(weight.double(), found.codes[:, :2], found.scales[:, 0], strict=True):
        errors = row - grid * scale.double()
        of = torch.einsum("ni,ij,nj->n", errors, hessian, errors)
        index = int((codes[0].long() + 8) * 16 + codes[1].long() + 8)
        total, best = total + float(of[index]), best + float(of.min())
    assert total <= 1.5 * best


def brain_surgeon(weight: torch.Tensor, scales: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """GPTQ as first told: after each input, the inverse of what is left and the best move of the rest."""
    left, values = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:].double())
        scale = scales[:, j // 32].double()
        values[:, j] = (left[:, j] / scale).round().clamp(-8, 7) * scale
        error = (left[:, j] - values[:, j]) / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    return values


def test_it_beats_gptq_written_out_with_the_same_scales() -> None:
    weight, seen = random(40, 160), statistics(activations(2000, 160))
    hessian = seen.curvature().hessian.double()
    found = quantize_calibrated(weight, 4, 32, seen)

    def objective(values: torch.Tensor) -> float:
        errors = weight.double() - values.double()
        return float(torch.einsum("oi,ij,oj->", errors, hessian, errors))

    plain = brain_surgeon(weight, found.scales, hessian)
    assert objective(found.dequantize()) < 0.95 * objective(plain)  # the sweep of coordinate descent
    assert (found.dequantize() != plain).float().mean() < 0.4  # most codes stay as they were


def test_without_correlations_it_is_rounding() -> None:
    weight = random(33, 96)
    seen = Statistics(96)
    seen.add(torch.eye(96))
    found, plain = quantize_calibrated(weight, 4, 32, seen), quantize_blocks(weight, 4, 32)
    torch.testing.assert_close(found.scales, plain.scales)
    assert torch.equal(found.codes, plain.codes)


def test_an_expert_that_saw_nothing_is_rounded() -> None:
    weight = random(33, 96)
    found, plain = quantize_calibrated(weight, 4, 32, Statistics(96)), quantize_blocks(weight, 4, 32)
    assert torch.equal(found.codes, plain.codes)


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_few_tokens_do_no_harm_on_others(tokens: int) -> None:
    weight = random(48, 256)
    found = quantize_calibrated(weight, 4, 32, statistics(activations(tokens, 256)))
    unseen = activations(1000, 256, seed=7)
    limit = output_error(weight, quantize_blocks(weight, 4, 32), unseen)
    assert output_error(weight, found, unseen) < 1.1 * limit


def test_dead_inputs_and_zero_weights_are_no_obstacle() -> None:
    rows = activations(1000, 128)
    rows[:, 5] = 0
    weight = random(20, 128)
    found = quantize_calibrated(weight, 4, 32, statistics(rows))
    zeros = quantize_calibrated(torch.zeros(3, 128), 4, 32, statistics(rows))
    assert not zeros.scales.any()
    assert not zeros.codes.any()
    assert bool(found.dequantize().isfinite().all())
    assert output_error(weight, found, rows) < output_error(weight, quantize_blocks(weight, 4, 32), rows)


def test_inputs_of_any_magnitude_give_the_same_codes() -> None:
    rows, weight = activations(500, 64), random(20, 64)
    base = quantize_calibrated(weight, 4, 32, statistics(rows))
    for factor in (2.0**-40, 2.0**40):
        assert torch.equal(quantize_calibrated(weight, 4, 32, statistics(rows * factor)).codes, base.codes)


def test_what_is_not_finite_is_refused_by_name() -> None:
    rows, weight = activations(100, 64), random(20, 64)
    rows[3, 4] = torch.inf
    with pytest.raises(ExportError, match="kv_a: the calibration text makes activations that are not finite"):
        quantize_calibrated(weight, 4, 32, statistics(rows), name="kv_a")
    weight[2, 40] = torch.nan
    with pytest.raises(ExportError, match="kv_a: holds values that are not finite"):
        quantize_calibrated(weight, 4, 32, statistics(activations(100, 64)), name="kv_a")


def test_padding_dtype_of_scales_and_row_chunks() -> None:
    weight = random(4200, 40).to(torch.bfloat16)  # more rows than are done at a time
    seen = statistics(activations(300, 40))
    found = quantize_calibrated(weight, 4, 32, seen, scale_dtype=torch.float16)
    assert found.scales.dtype == torch.float16
    assert found.codes.shape == (4200, 64)
    assert not found.codes[:, 40:].any()
    assert int(found.codes.min()) == -8
    alone = quantize_calibrated(weight[4150:4151], 4, 32, seen, scale_dtype=torch.float16)
    assert (alone.codes[0] != found.codes[4150]).sum() <= 1  # products of other shapes round otherwise


def test_the_same_bytes_every_time() -> None:
    weight, rows = random(300, 256), activations(2000, 256)
    first, second = (quantize_calibrated(weight, 4, 128, statistics(rows)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


def test_statistics_add_up_however_they_are_split() -> None:
    rows = activations(900, 64)
    parts = statistics(rows[:300])
    first = parts.curvature().hessian
    parts.add(rows[300:].view(2, 300, 64))
    whole = statistics(rows)
    assert parts.tokens == whole.tokens == 900
    torch.testing.assert_close(parts.curvature().hessian, whole.curvature().hessian)
    assert not torch.allclose(parts.curvature().hessian, first, rtol=1e-3)
