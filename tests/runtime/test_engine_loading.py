"""From a bundle to a backend on engines: the GPU asked for, the canary run, engines that fail it removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_runtime.backends import ort
from mla_runtime.backends.base import Backend, Call, Float32
from mla_runtime.bundle import Bundle
from mla_runtime.engines import flavour, loading, store, wanted
from mla_runtime.engines.files import read_record, write_record
from mla_runtime.engines.gpu import Gpu
from mla_runtime.engines.record import Limits
from mla_runtime.errors import BackendError, BundleError, EngineError, VerificationError
from tests.runtime.engine_builds import CARDS, LIMITS, Builds, build, library
from tests.runtime.handmade import canary, make_bundle

CARD = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 * 2**30, (13, 0))


@pytest.fixture
def canaried(tmp_path: Path) -> Bundle:
    return Bundle.open(make_bundle(tmp_path / "canaried", canary=canary([5, 6, 7], [8, 9])))


@pytest.fixture(autouse=True)
def a_card_and_its_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (wanted, loading):
        monkeypatch.setattr(module, "gpu_at_hand", lambda: CARD)
    monkeypatch.setattr(flavour.Flavour, "load", lambda self: library(flavour=self))


class Made:
    """Runs the bundle on ONNX Runtime in the engines' stead, and adds `off` to every logit but the first."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self.folders: list[Path] = []
        self.closed = 0

    def __call__(self, bundle: Bundle, found: Any, built: Any, folder: Path) -> Backend:
        self.folders.append(folder)
        backend = ort.OrtBackend(bundle, 1)
        make, close = backend.buffers, backend.close

        def buffers(batch: int, rows: int) -> Any:
            made = make(batch, rows)
            run = made.run

            def shifted(call: Call) -> Float32:
                logits = run(call)
                logits[:, 1:] += np.float32(self.off)
                return logits

            made.run = shifted
            return made

        def counted() -> None:
            self.closed += 1
            close()

        backend.buffers, backend.close = buffers, counted
        return backend


def test_engines_are_built_loaded_and_proved(canaried: Bundle):
    builds, made = Builds(), Made()
    loading.load_engines("tensorrt-rtx", canaried, made, build=builds).close()
    assert builds.asked == [(("sm89",), Limits(1, canaried.model.max_context, canaried.chunk))]
    (where,) = made.folders
    assert read_record(where).canary == "passed"
    loading.load_engines("tensorrt-rtx", canaried, made, build=None).close()
    assert made.folders == [where, where]


def test_engines_that_are_there_are_taken_whatever_their_limits(canaried: Bundle):
    _, where = store.ensure(canaried, library(), CARDS, LIMITS, build=Builds())
    made = Made()
    loading.load_engines("tensorrt-rtx", canaried, made, build=None).close()
    assert made.folders == [where]
    with pytest.raises(EngineError, match="are asked for"):
        loading.load_engines("tensorrt-rtx", canaried, made, build=None, limits=Limits(4, 64, 7))


def test_engines_that_fail_the_canary_are_removed(canaried: Bundle):
    builds, made = Builds(), Made(off=5.0)
    with pytest.raises(VerificationError, match=r"fail the canary .*were removed from the cache"):
        loading.load_engines("tensorrt-rtx", canaried, made, build=builds)
    assert made.closed == 1
    assert not made.folders[0].exists()
    assert list(made.folders[0].parent.iterdir()) == []
    with pytest.raises(EngineError, match="no engines for"):
        loading.load_engines("tensorrt-rtx", canaried, Made(), build=None)


def test_logits_that_are_not_finite_are_a_canary_that_fails(canaried: Bundle):
    with pytest.raises(VerificationError, match=r"not finite.*were removed from the cache"):
        loading.load_engines("tensorrt-rtx", canaried, Made(off=np.nan), build=Builds())


def test_a_folder_of_the_users_own_is_not_removed(canaried: Bundle, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    built = build(canaried, library(), CARDS, LIMITS, mine)
    write_record(built, mine)
    with pytest.raises(VerificationError, match="they are not used; build others on this machine"):
        loading.load_engines("tensorrt-rtx", canaried, Made(off=5.0), folder=mine, build=None)
    loading.load_engines("tensorrt-rtx", canaried, Made(), folder=mine, build=None).close()
    assert read_record(mine) == built, "nor written"


def test_what_is_no_fault_of_the_engines_leaves_them(canaried: Bundle):
    def refuses(*_: Any) -> Backend:
        raise BackendError("out of memory")

    _, where = store.ensure(canaried, library(), CARDS, LIMITS, build=Builds())
    with pytest.raises(BackendError, match="out of memory"):
        loading.load_engines("tensorrt-rtx", canaried, refuses, build=None)
    assert where.exists()


def test_a_bundle_without_a_canary_is_not_trusted_to_engines(bundle: Path):
    made = Made()
    with pytest.raises(BundleError, match="has no canary"):
        loading.load_engines("tensorrt-rtx", Bundle.open(bundle), made, build=Builds())
    assert made.closed == 1


def test_without_a_gpu_nothing_is_built(canaried: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "gpu_at_hand", lambda: None)
    builds = Builds()
    with pytest.raises(BackendError, match="backend tensorrt: no NVIDIA GPU"):
        loading.load_engines("tensorrt", canaried, Made(), build=builds)
    assert builds.count == 0
