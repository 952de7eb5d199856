"""Sessions on the TensorRT backend, over a fake device, are those of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mla_runtime
from mla_runtime.errors import BackendError, EngineError, NumericsError
from mla_runtime.sampling import Sampling
from tests.runtime.rig import CLOSE, Rig, make_rig, same_logits, same_rows

SAMPLINGS = [Sampling(), Sampling(0.8, top_k=7, seed=1), Sampling(0.8, seed=1)]


@pytest.mark.parametrize("name", ["handmade", "float", "int8", "int8 rope"])
@pytest.mark.parametrize("single", [False, True], ids=["two engines", "one engine"])
def test_one_sequence_equals_onnx_runtime_token_by_token_and_row_by_row(
    bundles: dict[str, Path], tmp_path: Path, name: str, single: bool
) -> None:
    rig = make_rig(bundles[name], tmp_path / "engines", single=single)
    ids = np.random.default_rng(0).integers(1, 60, 37).tolist()
    with rig.ort.session(max_context=300) as want, rig.model.session(max_context=300) as found:
        same_logits(found.prefill([ids]), want.prefill([ids]), name)
        same_rows(want, found, name)
        for token in range(1, 40):
            same_logits(found.step([token]), want.step([token]), name)
        same_rows(want, found, name)
        ids = np.random.default_rng(1).integers(1, 60, 190).tolist()  # past the first T that is shown
        same_logits(found.prefill([ids]), want.prefill([ids]), name)
        for token in range(1, 20):
            same_logits(found.step([token]), want.step([token]), name)
        same_rows(want, found, name)
        assert rig.steps(found).captures == 2
    rig.model.close()
    assert rig.device.closed


@pytest.mark.parametrize("name", ["handmade", "float", "int8"])
def test_a_ragged_batch_equals_onnx_runtime_through_growing_strides(
    bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    rig = make_rig(bundles[name], tmp_path / "engines")
    random = np.random.default_rng(0)
    prompts = [random.integers(1, 60, count).tolist() for count in (250, 1, 33, 120)]
    with rig.ort.session(4, 450) as want, rig.model.session(4, 450) as found:
        same_logits(found.prefill(prompts), want.prefill(prompts), name)
        for step in range(14):  # 256 rows are passed on the way
            ids = [7 + step, None if step % 3 == 1 else 9, 3, None if step < 5 else 11]
            same_logits(found.step(ids), want.step(ids), name)
        same_rows(want, found, name)
        more = [random.integers(1, 60, 130).tolist() for _ in range(4)]  # past 384, up to the limit
        same_logits(found.prefill(more), want.prefill(more), name)
        same_rows(want, found, name)
        same_logits(found.step([1, 2, 3, 4]), want.step([1, 2, 3, 4]), name)
    rig.model.close()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_generation_equals_onnx_runtime(rig: Rig, sampling: Sampling) -> None:
    prompts = [[3, 1, 4, 1, 5], [2, 7], [1] * 20]
    options: Any = {"max_tokens": 30, "sampling": sampling, "stop_ids": []}
    assert rig.model.complete(prompts, **options) == rig.ort.complete(prompts, **options)
    for prompt in prompts:
        found = [token.id for token in rig.model.generate(prompt, **options)]
        assert found == [token.id for token in rig.ort.generate(prompt, **options)]


def test_only_what_is_chosen_comes_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    with rig.model.session() as session:
        session.prefill_top([[1, 2, 3]], 1)
        stream = rig.device.streams[-1]
        copy_out = stream.copy_out
        monkeypatch.setattr(
            stream,
            "copy_out",
            lambda *args: (sizes.append(args[0].nbytes), copy_out(*args)),
        )
        session.step_top([4], 1)
        session.step_top([4], 5)
    assert sizes == [8 + 4 + 4, 5 * (8 + 4) + 4]


@pytest.mark.parametrize("count", [1, 3, 61])
def test_the_best_are_those_of_all_logits(rig: Rig, count: int) -> None:
    prompts = [[3, 1, 4], [1, 5], [9]]
    with rig.model.session(3) as one, rig.model.session(3) as other:
        one.prefill(prompts)
        other.prefill(prompts)
        for _ in range(4):
            logits, top = one.step([5, None, 6]), other.step_top([5, None, 6], count)
            for b in (0, 2):
                want = np.lexsort((np.arange(61), -logits[b]))[:count]
                assert top.ids[b].tolist() == want.tolist()
                assert np.array_equal(top.logits[b], logits[b][want])


def test_a_step_waits_once_and_is_recorded_once_for_each_t_and_answer(rig: Rig) -> None:
    with rig.model.session(max_context=400) as session:
        session.prefill([[1] * 250])
        stream = rig.device.streams[-1]
        waited = []
        for _ in range(12):  # from T = 256 to 384
            before = rig.device.synchronisations
            session.step_top([5], 1)
            waited.append(rig.device.synchronisations - before)
        assert waited == [1] * 12
        # the first step at a T is run as it is, the second one recorded
        assert rig.steps(session).captures == stream.captured == 2
        assert stream.replayed == 12 - 2
        session.step([5])
        assert stream.captured == 3
        session.step([5])
        assert stream.captured == 3
        fixed = [c.config.dynamic_shapes_kernel_specialization_strategy for c in rig.trt.contexts]
        assert fixed.count("eager") == 2  # one context for each T of steps
        assert {c.config.cuda_graph_strategy for c in rig.trt.contexts} == {"disabled"}
        assert {c.config.strategy for c in rig.trt.contexts} == {"user managed"}
        # a kernel is compiled once for an engine, whichever session wants it
        rig.model.session().close()
        kernels = {(id(c.engine), id(c.config.kernels)) for c in rig.trt.contexts}
        assert len(kernels) == 2
        assert None not in {c.config.kernels for c in rig.trt.contexts}


def test_the_other_flavour_with_fewer_functions_does_the_same(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    rig = make_rig(bundles["int8"], tmp_path / "engines", flavour="tensorrt")
    with rig.ort.session(max_context=300) as want, rig.model.session(max_context=300) as found:
        same_logits(found.prefill([[1, 2, 3]]), want.prefill([[1, 2, 3]]), "int8")
        for token in range(1, 6):
            same_logits(found.step([token]), want.step([token]), "int8")
        assert rig.steps(found).captures == 1
    assert rig.model.backend.name == "tensorrt"
    assert {c.config for c in rig.trt.contexts} == {"user managed"}


def test_what_cannot_be_recorded_is_run_and_said(rig: Rig) -> None:
    rig.trt.capturable = False
    with rig.ort.session() as want, rig.model.session(max_context=300) as found:
        want.prefill([[1, 2]])
        found.prefill([[1, 2]])
        for token in range(1, 6):
            same_logits(found.step([token]), want.step([token]))
        assert rig.steps(found).captures == 0
        assert "cannot be recorded" in rig.steps(found).uncaptured
        assert rig.device.streams[-1].replayed == 0


def test_a_recording_that_fails_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with rig.ort.session() as want, rig.model.session(max_context=300) as found:
        want.prefill([[1, 2]])
        found.prefill([[1, 2]])
        stream = rig.device.streams[-1]
        launch = stream.launch

        def refuse(*args: Any) -> None:
            if stream.recording is not None:
                raise BackendError("CUDA: cuLaunchKernel: not permitted while recording")
            launch(*args)

        monkeypatch.setattr(stream, "launch", refuse)
        for token in range(1, 6):
            same_logits(found.step([token]), want.step([token]))
        assert "not permitted" in rig.steps(found).uncaptured
        assert not stream.live


def test_a_moved_buffer_would_be_noticed(rig: Rig) -> None:
    with rig.model.session() as session:
        session.prefill([[1, 2]])
        for _ in range(3):
            session.step([1])
        base = max(rig.device.blocks)
        rig.device.blocks[2 * base] = rig.device.blocks.pop(base)
        with pytest.raises(AssertionError, match="leave their allocation"):
            session.step([1])
        rig.device.blocks[base] = rig.device.blocks.pop(2 * base)


@pytest.mark.parametrize("count", [None, 1, 5])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_raise_and_the_step_can_be_taken_again(
    rig: Rig, poison: float, count: int | None
) -> None:
    def step(session: mla_runtime.Session) -> Any:
        return session.step([5, 6]) if count is None else session.step_top([5, 6], count)

    with rig.model.session(2) as session, rig.ort.session(2) as want:
        session.prefill([[1, 2, 3], [4]])
        want.prefill([[1, 2, 3], [4]])
        for _ in range(3):
            step(session), step(want)
        rig.trt.poison = poison
        with pytest.raises(NumericsError, match=r"\(step graph\): logits of sequence 1 at depth 4"):
            step(session)
        rig.trt.poison = None
        assert session.lengths == (6, 4)
        cache = session._buffers._cache  # type: ignore[attr-defined]
        for (tensor, address), length in [(entry, n) for entry in cache._tensors for n in (6,)]:
            tail = rig.device.view(cache._row(tensor, address, 0, length), 8 * tensor.row_bytes)
            assert not tail.any()
        found, right = step(session), step(want)
        if count is None:
            np.testing.assert_allclose(found, right, **CLOSE)
        else:
            assert np.array_equal(found.ids, right.ids)
        same_rows(want, session)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_refusal_in_the_middle_of_a_step_leaves_the_session_as_it_was(rig: Rig, recorded: bool) -> None:
    with rig.ort.session() as want, rig.model.session(max_context=300) as found:
        want.prefill([[1, 2]])
        found.prefill([[1, 2]])
        for _ in range(2 * recorded):
            want.step([3]), found.step([3])
        rig.trt.refuse = True
        failing = (lambda: found.prefill([[4, 5, 6]])) if recorded else (lambda: found.step([4]))
        refused = r"graph, 1 × \d+ new tokens at depth \d: .* the fake engine refuses"
        with pytest.raises(EngineError, match=refused):
            failing()
        rig.trt.refuse = False
        same_logits(found.step([4]), want.step([4]))
        same_rows(want, found)


def test_an_error_of_the_device_is_told_and_a_step_after_a_passing_one_is_right(rig: Rig) -> None:
    with rig.ort.session() as want, rig.model.session(max_context=300) as found:
        want.prefill([[1, 2]])
        found.prefill([[1, 2]])
        rig.device.fail_at = rig.device.synchronisations + 1
        with pytest.raises(BackendError, match="step graph, 1 × 1 new tokens at depth 2: CUDA: cuStreamSync"):
            found.step([3])
        same_logits(found.step([3]), want.step([3]))


def test_a_device_that_stays_broken_is_one_clear_error(rig: Rig) -> None:
    session = rig.model.session(max_context=300)
    session.prefill([[1, 2]])
    rig.device.dead = "CUDA: an illegal memory access was encountered"
    with pytest.raises(BackendError, match="illegal memory access"):
        session.step([3])
    rig.device.dead = None
    with pytest.raises(BackendError, match=r"the device failed in this session .*; open another one"):
        session.step([3])
    session.close()


def test_an_interrupt_while_rows_move_ends_the_session(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with rig.model.session(2, 400) as session:
        session.prefill([[1] * 250, [2]])
        stream = rig.device.streams[-1]

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(stream, "copy", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.prefill([[1] * 10, [2]])
        with pytest.raises(BackendError, match="was being moved when it was interrupted"):
            session.step([1, 1])
