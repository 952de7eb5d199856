"""The paired bootstrap, and what it says of int4 weights: better than plain rounding to nearest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, dtype

from mla_export import paired, quantiser
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.paired import BLOCK, paired_bootstrap
from mla_export.quality import Teacher, observe, observe_rounded, text_windows
from mla_export.quantize import Quantized
from mla_export.quantize.blocks import grouped, round_to
from mla_export.reference import Reference
from mla_export.rounding import Rounded, counterpart
from mla_graphs.storage import Bits
from mla_runtime import Bundle
from tests.quick_trace import quick_tracing

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "tiny-mla"
TEXT = SAMPLE / "held_out.txt"
TOKENS = 4096
LEAST_GAIN = 0.1  # the share of its KL by which the whole interval has to be below rounding to nearest
INT4 = {"target": "ort-cpu", "weights": "int4", "group": 32}


def noise(count: int, kept: float, rng: np.random.Generator) -> np.ndarray:
    """Draw noise of mean zero of which each value keeps a share `kept` of the one before."""
    values = rng.standard_normal(count)
    for i in range(1, count):
        values[i] += kept * values[i - 1]
    return values


def share_held(kept: float) -> float:
    """How often the interval of 4,096 differences holds their true mean."""
    rng = np.random.default_rng(1)
    difficulty = rng.lognormal(0, 3, 4096)  # the same for both, and far larger than what tells them apart
    held = 0
    for seed in range(200):
        first = difficulty + 0.1 + noise(4096, kept, rng)
        found = paired_bootstrap(first, difficulty, samples=400, seed=seed)
        held += found.low <= 0.1 <= found.high
    return held / 200


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_the_interval_holds_the_mean_about_as_often_as_it_says(kept):
    assert 0.88 <= share_held(kept) <= 0.99


def test_single_positions_would_not_where_neighbours_are_alike(monkeypatch):
    monkeypatch.setattr(paired, "BLOCK", 1)
    assert share_held(0.8) < 0.6


def test_what_differs_everywhere_by_as_much_differs_by_that():
    first, second = np.linspace(1, 2, 1000), np.linspace(1, 2, 1000) + 0.25
    found = paired_bootstrap(first, second)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert found.better
    assert not paired_bootstrap(second, first).better
    assert not paired_bootstrap(first, first).better


def test_the_same_seed_gives_the_same_interval():
    first, second = np.random.default_rng(0).standard_normal((2, 999))
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second)
    assert paired_bootstrap(first, second) != paired_bootstrap(first, second, seed=1)
    assert paired_bootstrap(first, second).mean == pytest.approx((first - second).mean())


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros(300), np.zeros(299), "are not in pairs"),
        (np.zeros((2, 300)), np.zeros((2, 300)), "are not in pairs"),
        (np.zeros(2 * BLOCK - 1), np.zeros(2 * BLOCK - 1), "127 positions are less than two blocks of 64"),
    ],
)
def test_what_cannot_be_paired_is_refused(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second)


class Rounding:
    """int4 weights in each way, and what each costs at the first positions of the held-out text."""

    def __init__(self, folder: Path) -> None:
        text = TEXT.read_text(encoding="utf-8")
        (folder / "other.txt").write_text(text[len(text) // 2 :], encoding="utf-8")
        calibrate = {"calibrate": folder / "other.txt", "calibrate_tokens": 4096}
        with quick_tracing():
            searched = Bundle.open(export(SAMPLE, folder / "searched", **INT4))
            calibrated = Bundle.open(export(SAMPLE, folder / "calibrated", **INT4, **calibrate))
        reference = Reference(Checkpoint.open(SAMPLE), searched.model.max_context)
        windows = text_windows(searched, TEXT, TOKENS)
        self.teacher = Teacher.of(reference, windows)
        rounded = counterpart(searched.manifest.precision)
        assert isinstance(rounded, Rounded)
        self.rounded = rounded
        self.nearest = self.of(rounded)
        self.searched, self.calibrated = (
            observe(bundle, self.teacher, threads=1).free.kl for bundle in (searched, calibrated)
        )

    def of(self, rounded: Rounded) -> np.ndarray:
        return observe_rounded(rounded, self.teacher).kl


@pytest.fixture(scope="module")
def rounding(tmp_path_factory) -> Rounding:
    return Rounding(tmp_path_factory.mktemp("paired"))


def test_calibrated_int4_is_better_than_rounding_to_nearest(rounding):
    found = paired_bootstrap(rounding.calibrated, rounding.nearest)
    assert found.better
    assert found.high < -0.5 * rounding.nearest.mean()


def test_searched_int4_is_better_than_rounding_to_nearest_and_calibrated_than_that(rounding):
    found = paired_bootstrap(rounding.searched, rounding.nearest)
    assert found.better
    assert found.high < -LEAST_GAIN * rounding.nearest.mean()
    assert paired_bootstrap(rounding.calibrated, rounding.searched).better


def nearest_blocks(
    weight: Tensor, bits: Bits, group: int, *, scale_dtype: dtype, name: str, positive: bool
) -> Quantized:
    """Stand in for `quantize_blocks`: scales by the largest magnitude, nothing searched."""
    assert not positive
    values = grouped(weight, group)
    scales = values.abs().amax(-1) / (2 ** (bits - 1) - 1)
    codes = round_to(values.contiguous(), scales, bits).view(len(weight), -1)
    return Quantized(codes, scales.to(scale_dtype), bits, group, weight.shape[1])


def test_a_bundle_rounded_to_nearest_is_not_better(rounding, tmp_path, monkeypatch):
    """Nor worse: the layers that stand for it cost what the engine makes of the same weights."""
    monkeypatch.setattr(quantiser, "quantize_blocks", nearest_blocks)
    with quick_tracing():
        bundle = Bundle.open(export(SAMPLE, tmp_path / "nearest", **INT4))
    found = paired_bootstrap(observe(bundle, rounding.teacher, threads=1).free.kl, rounding.nearest)
    assert abs(found.mean) < 0.05 * rounding.nearest.mean()
    assert found.high > -LEAST_GAIN * rounding.nearest.mean()


@pytest.mark.parametrize("change", [{"bits": 3}, {"group": 128}], ids=str)
def test_a_worse_rounding_is_not_better(rounding, change):
    scheme = dataclasses.replace(rounding.rounded.scheme, **change)
    worse = rounding.of(dataclasses.replace(rounding.rounded, scheme=scheme))
    assert not paired_bootstrap(worse, rounding.nearest).better
    assert paired_bootstrap(rounding.nearest, worse).better
