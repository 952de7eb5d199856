"""The runtime on real bundles of the trained sample: latent rows, expanded rows, experts, text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mla_runtime
from mla_export.export import export
from mla_runtime.errors import NumericsError
from tests.quick_trace import quick_tracing

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "tiny-mla"
PROMPT = "def read_lines(path):\n    with open(path) as file:\n        return "
# The same sums in another order, fp32, four layers deep: logits of 20, 2^-24 relative, some hundreds of
# terms. One missing row of 30 changes logits by more than 0.1 (tested below).
CLOSE = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module", params=["factored", "expanded"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[mla_runtime.Model]:
    with quick_tracing():
        out = tmp_path_factory.mktemp("real") / request.param
        path = export(SAMPLE, out, absorb=request.param, chunk=16)
    with mla_runtime.open(path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(model: mla_runtime.Model) -> list[int]:
    assert model.text is not None
    return model.text.encode(PROMPT)


def whole(model: mla_runtime.Model, ids: list[int]) -> np.ndarray:
    with model.session() as s:
        return s.prefill([ids])


def test_the_canary_passes(model: mla_runtime.Model) -> None:
    found = mla_runtime.check_canary(model)
    assert found.error <= found.tolerance


def test_prompt_chunks_and_steps_agree(model: mla_runtime.Model, ids: list[int]) -> None:
    want = whole(model, ids)
    for cut in (1, 5, 16, 17, len(ids) - 1):
        with model.session() as s:
            s.prefill([ids[:cut]])
            np.testing.assert_allclose(s.prefill([ids[cut:]]), want, **CLOSE)
    with model.session() as s:
        s.prefill([ids[:1]])
        for token in ids[1:]:
            logits = s.step([token])
        np.testing.assert_allclose(logits, want, **CLOSE)


def test_a_missing_row_would_show(model: mla_runtime.Model, ids: list[int]) -> None:
    with model.session() as s:
        s.prefill([ids[:-1]])
        for rows in s._buffers._rows:  # type: ignore[attr-defined]
            rows[:, 3] = 0
        assert np.abs(s.step(ids[-1:]) - whole(model, ids)).max() > 100 * CLOSE["atol"]


def test_rows_of_a_ragged_batch_equal_rows_alone(model: mla_runtime.Model, ids: list[int]) -> None:
    rows = [ids, ids[:3], ids[4:20]]
    with model.session(3) as s:
        logits = s.prefill(rows)
        for step in range(70):
            if step % 10 == 0:
                for row, line in zip(rows, logits, strict=True):
                    if line.any():
                        np.testing.assert_allclose(line, whole(model, row)[0], **CLOSE)
            given: list[int | None] = [7 + step, None if step % 4 == 1 else 9, 300]
            logits = s.step(given)
            rows = [row if token is None else [*row, token] for row, token in zip(rows, given, strict=True)]


def test_new_rows_land_in_their_slots_and_poison_behind_them_is_not_read(
    model: mla_runtime.Model, ids: list[int]
) -> None:
    want = whole(model, [*ids, 5])
    with model.session() as s:
        s.prefill([ids])
        held: Any = s._buffers
        for rows in held._rows:
            rows[:, len(ids) :] = np.nan
        np.testing.assert_allclose(s.step([5]), want, **CLOSE)
        for rows in held._rows:
            assert np.isfinite(rows[0, len(ids)]).all()
            assert np.isnan(rows[0, len(ids) + 1 :]).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_failed_step_can_be_run_again(
    model: mla_runtime.Model, ids: list[int], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [ids, ids[:6]][:batch]
    with model.session(batch) as s:
        s.prefill(prompts)
        with model.session(batch) as twin:
            twin.prefill(prompts)
            want = twin.step([5] * batch)
        run = type(s._buffers).run

        def broken(self: Any, call: Any) -> Any:
            return run(self, call) * np.float32(np.nan)

        with monkeypatch.context() as patch:
            patch.setattr(type(s._buffers), "run", broken)
            with pytest.raises(NumericsError, match="step graph"):
                s.step([5] * batch)
        assert np.array_equal(s.step([5] * batch), want)


def test_it_writes_python(model: mla_runtime.Model) -> None:
    assert model.text is not None
    with model.generate(PROMPT, max_tokens=24) as stream:
        text = "".join(token.text for token in stream)
    assert text == model.text.decode(stream.ids)
    assert "file" in text, f"the sample continued with {text!r}"


def test_finished_rows_change_nothing_for_the_others(model: mla_runtime.Model, ids: list[int]) -> None:
    (first,) = model.complete([ids], max_tokens=3, stop_ids=[])
    stop_ids = first.ids[-1:]
    together = model.complete([ids, ids[:9]], max_tokens=12, stop_ids=stop_ids)
    assert together[0].ids == first.ids
    assert together[0].reason == "stop"
    assert together[1:] == model.complete([ids[:9]], max_tokens=12, stop_ids=stop_ids)


def test_rows_are_those_of_the_sequence_whatever_stands_beside_it(
    model: mla_runtime.Model, ids: list[int]
) -> None:
    with model.session() as alone, model.session(2) as batch:
        alone.prefill([ids])
        batch.prefill([ids[:5], ids])
        want, got = alone.rows(), batch.rows(1)
    assert list(want) == [tensor.past for tensor in model.bundle.cache]
    for name, rows in want.items():
        assert rows.shape[0] == len(ids)
        np.testing.assert_allclose(got[name], rows, rtol=1e-4, atol=1e-4)
    assert any(np.abs(rows).max() > 0.1 for rows in want.values())
