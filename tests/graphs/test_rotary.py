"""Rotary tables from the papers' formulas; tests/export/test_rope.py holds them against transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mla_graphs.geometry import LinearScaling, LongRope, Rotary, Yarn
from mla_graphs.rotary import attention_factor, inverse_frequencies, rotary_tables

PLAIN = Rotary(theta=10000.0, interleaved=True, scaling=None)
# DeepSeek-V3's, but for the attention factor, which is 1 there
YARN = Yarn(
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    attention_factor=1.25,
    truncate=True,
)


def test_plain_pair_i_turns_by_theta_to_the_minus_2i_over_dim() -> None:
    assert inverse_frequencies(PLAIN, 8).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-15)


def test_linear_scaling_divides_every_frequency() -> None:
    scaled = inverse_frequencies(replace(PLAIN, scaling=LinearScaling(4.0)), 8)
    np.testing.assert_allclose(scaled, inverse_frequencies(PLAIN, 8) / 4, rtol=1e-15)


def test_longrope_divides_each_frequency_by_its_own_factor() -> None:
    rotary = replace(PLAIN, scaling=LongRope((1.0, 2.0, 4.0, 8.0), 1.5))
    np.testing.assert_allclose(
        inverse_frequencies(rotary, 8), [1.0, 0.1 / 2, 0.01 / 4, 0.001 / 8], rtol=1e-15
    )
    assert attention_factor(rotary) == 1.5


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_blends_linearly_between() -> None:
    # by hand: 64 ln(4096 / 64π) / (2 ln 10000) = 10.47 and 64 ln(4096 / 2π) / (2 ln 10000) = 22.51
    low, high = 10, 23
    ratio = inverse_frequencies(replace(PLAIN, scaling=YARN), 64) / inverse_frequencies(PLAIN, 64)
    np.testing.assert_allclose(ratio[: low + 1], 1.0, rtol=1e-14)
    np.testing.assert_allclose(ratio[high:], 1 / 40, rtol=1e-14)
    share = (np.arange(low, high + 1) - low) / (high - low)
    np.testing.assert_allclose(ratio[low : high + 1], share / 40 + (1 - share), rtol=1e-14)


def test_yarn_without_truncation_blends_from_the_real_bounds() -> None:
    scaling = replace(YARN, truncate=False)
    ratio = inverse_frequencies(replace(PLAIN, scaling=scaling), 64) / inverse_frequencies(PLAIN, 64)
    low = 64 * math.log(4096 / (64 * math.pi)) / (2 * math.log(10000))
    high = 64 * math.log(4096 / (2 * math.pi)) / (2 * math.log(10000))
    share = (16 - low) / (high - low)
    assert ratio[16] == pytest.approx(share / 40 + (1 - share), rel=1e-14)


def test_yarn_with_equal_betas_is_a_step_and_stays_finite() -> None:
    scaling = replace(YARN, beta_fast=1.0, truncate=False)
    ratio = inverse_frequencies(replace(PLAIN, scaling=scaling), 64) / inverse_frequencies(PLAIN, 64)
    np.testing.assert_allclose(ratio[:23], 1.0, rtol=1e-14)
    np.testing.assert_allclose(ratio[23:], 1 / 40, rtol=1e-14)


def test_tables_hold_cos_and_sin_of_position_times_frequency_times_the_attention_factor() -> None:
    rotary = replace(PLAIN, scaling=YARN)
    cos, sin = rotary_tables(rotary, 64, 16384)
    assert cos.dtype == sin.dtype == np.float64
    assert cos.shape == sin.shape == (16384, 32)
    frequencies = inverse_frequencies(rotary, 64)
    for position, pair in ((0, 0), (1, 31), (16383, 0), (16383, 17), (5000, 12)):
        angle = position * float(frequencies[pair])
        assert cos[position, pair] == pytest.approx(1.25 * math.cos(angle), rel=1e-13, abs=1e-13)
        assert sin[position, pair] == pytest.approx(1.25 * math.sin(angle), rel=1e-13, abs=1e-13)


def test_the_order_of_pairs_in_the_checkpoint_does_not_move_the_tables() -> None:
    first, second = (rotary_tables(replace(PLAIN, interleaved=way), 8, 16) for way in (True, False))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
