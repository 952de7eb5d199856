"""Measuring speed: depths cost nothing to reach, and what does not fit is refused first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mla_runtime
from mla_runtime.errors import CapacityError, InputError
from mla_runtime.model import Model
from tests.runtime.fake import FakeBackend, fake_bundle


def test_each_depth_is_measured_behind_rows_that_were_not_computed() -> None:
    backend = FakeBackend()
    done: list[mla_runtime.Speed] = []
    speeds = mla_runtime.measure(
        Model(fake_bundle(256), backend), [0, 100], prompt_tokens=20, steps=5, on_done=done.append
    )
    assert done == speeds
    assert [speed.depth for speed in speeds] == [0, 100]
    starts = [int(c.past_lengths[0]) for c in backend.calls if c.phase == "prompt"]
    assert starts == [0, 7, 14] * 2 + [100, 107, 114] * 2
    steps = [int(c.past_lengths[0]) for c in backend.calls if c.phase == "step"]
    assert steps == [*range(1, 7), *range(100, 106)]
    for speed in speeds:
        assert 0 < speed.step_seconds <= speed.step_worst_seconds
        assert speed.prompt_rate == pytest.approx(20 / speed.prompt_seconds)
    row_bytes = sum(t.row_bytes for t in fake_bundle().cache)
    assert row_bytes == 2 * (12 + 4) * 4
    assert [speed.cache_bytes for speed in speeds] == [0, 100 * row_bytes]


@pytest.mark.parametrize("batch", [1, 2])
def test_filled_rows_are_numbers_and_finite(model: Model, batch: int) -> None:
    with model.session(batch, 200) as s:
        s.fill(150)
        for rows in s._buffers._rows:  # type: ignore[attr-defined]
            assert np.isfinite(rows).all()
            assert rows[:, :150].any(axis=-1).all(), "a row was never written"
            assert not rows[:, 150:].any()
        assert np.isfinite(s.step([1] * batch)).all()


def test_a_real_bundle_is_measured(model: Model) -> None:
    (speed,) = mla_runtime.measure(model, [100], prompt_tokens=10, steps=3, batch=2)
    assert speed.batch == 2
    assert speed.peak_bytes is None or speed.peak_bytes > 2**20
    assert speed.step_rate == pytest.approx(2 / speed.step_seconds)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process' peak may begin with its parent's")
def test_peak_memory_is_that_of_the_process_and_not_of_who_started_it() -> None:
    code = "from mla_runtime.bench import peak_memory; print(peak_memory())"
    large = np.ones(2**28, np.uint8)  # 256 MiB of this process
    env = {**os.environ, "PYTHONPATH": str(Path(mla_runtime.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert large.all()
    assert int(done.stdout) < 200 * 2**20


def test_depths_that_do_not_fit_are_refused_before_anything_runs() -> None:
    backend = FakeBackend()
    with pytest.raises(CapacityError, match="depth 250 and what is measured there take 270 rows, more than"):
        mla_runtime.measure(Model(fake_bundle(256), backend), [0, 250], prompt_tokens=20, steps=5)
    with pytest.raises(InputError, match="at least"):
        mla_runtime.measure(Model(fake_bundle(256), backend), [-1])
    assert backend.calls == []
