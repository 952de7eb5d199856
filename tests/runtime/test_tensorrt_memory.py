"""The TensorRT backend's memory over a fake device: what is there once, what fits, what is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_runtime.backends.session_estimate import RESERVE
from mla_runtime.backends.tensorrt import TensorrtBackend
from mla_runtime.bundle import Bundle
from mla_runtime.engines.record import Limits
from mla_runtime.errors import CapacityError, EngineError, SessionError
from tests.runtime import fake_tensorrt
from tests.runtime.fake_device import FakeDevice
from tests.runtime.rig import LIMITS, Rig, make_rig, same_logits, same_rows


def test_memory_is_zeroed_aligned_and_given_back(rig: Rig) -> None:
    before, pinned = rig.device.used, rig.device.pinned_bytes
    for context in rig.trt.contexts:
        assert not context.addresses
    session = rig.model.session(3, 300)
    assert session.nbytes == sum(-(-3 * 300 * t.row_bytes // 256) * 256 for t in rig.model.bundle.cache)
    base = max(rig.device.blocks)
    assert not rig.device.view(base, session.nbytes).any()
    session.prefill([[1], [2], [3]])
    session.close()
    session.close()
    assert (rig.device.used, rig.device.pinned_bytes) == (before, pinned)
    assert rig.device.streams[-1].closed


def test_a_session_that_is_forgotten_frees_its_memory(rig: Rig) -> None:
    before = rig.device.used
    session = rig.model.session()
    assert rig.device.used > before
    del session
    assert rig.device.used == before


def test_a_closed_model_waits_for_its_sessions(rig: Rig) -> None:
    session = rig.model.session()
    session.prefill([[1, 2]])
    rig.model.close()
    assert not rig.device.closed
    with pytest.raises(SessionError, match="this model is closed"):
        session.step([1])
    with pytest.raises(SessionError, match="this model is closed"):
        rig.model.session()
    session.close()
    assert rig.device.closed


def test_weights_are_on_the_device_once_and_aligned(rig: Rig) -> None:
    backend: Any = rig.model.backend
    data = (rig.model.bundle.path / "weights.data").read_bytes()
    for weight in backend._built.outside:
        address = backend._weights.addresses[weight.name]
        assert address % 256 == 0
        want = data[weight.offset : weight.offset + weight.nbytes]
        assert rig.device.view(address, weight.nbytes).tobytes() == want
    assert len(rig.device.blocks) == 1


def test_fill_stands_in_for_rows_and_can_be_stepped_on(bundles: dict[str, Path], tmp_path: Path) -> None:
    rig = make_rig(bundles["int8"], tmp_path / "engines")
    with rig.model.session(2, 400) as session:
        session.fill(300)
        assert session.lengths == (300, 300)
        for sequence in range(2):
            for name, rows in session.rows(sequence).items():
                assert rows.astype(np.float64).any(axis=tuple(range(1, rows.ndim))).all(), name
                if name.endswith("scale"):
                    assert (rows == 1 / 32).all()
        assert np.isfinite(session.step([1, 2])).all()
        session.fill(0)
        assert session.lengths == (0, 0)


@pytest.mark.parametrize(
    ("batch", "rows", "message"),
    [
        (5, 10, r"batch 5 passes the 4 that the engines are built for; .* build them with --max-batch 5"),
        (1, 512, r"max_context 512 passes the 400 .* --max-context 512"),
    ],
)
def test_more_than_engines_are_built_for_is_refused(
    bundles: dict[str, Path], tmp_path: Path, batch: int, rows: int, message: str
) -> None:
    rig = make_rig(bundles["handmade"], tmp_path / "engines", Limits(4, 400, 16))
    with pytest.raises(CapacityError, match=message):
        rig.model.session(batch, rows)


@pytest.mark.parametrize("batch", [1, 4])
def test_out_of_memory_names_a_context_that_fits_and_it_does(rig: Rig, batch: int) -> None:
    with rig.model.session(batch, 512) as session:
        need = rig.device.used
        assert session.max_context == 512
    rig.device.memory = rig.device.used + RESERVE + (need - rig.device.used) * 3 // 4
    with pytest.raises(CapacityError, match=r"bytes of a fake GPU .* max_context \d+") as raised:
        rig.model.session(batch, 512)
    fitting = int(str(raised.value).partition("max_context ")[2].partition(",")[0])
    assert 1 <= fitting < 512
    rig.model.session(batch, fitting).close()
    with pytest.raises(CapacityError):
        rig.model.session(batch, fitting + 1)
    rig.device.memory = rig.device.used + RESERVE
    with pytest.raises(CapacityError, match="not one row fits"):
        rig.model.session(batch, 512)


def test_weights_that_do_not_fit_are_refused_before_anything_is_read(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = Bundle.open(bundles["handmade"])
    device = FakeDevice(RESERVE + 4096)
    library = fake_tensorrt.library(device)
    built = fake_tensorrt.build(bundle, tmp_path / "engines", LIMITS)
    with pytest.raises(CapacityError, match=r"[\d,]+ bytes of weights and [\d,]+ of engines do not fit"):
        TensorrtBackend(bundle, library, built, tmp_path / "engines", device)  # type: ignore[arg-type]
    assert not device.blocks


def test_prompts_come_in_few_widths(bundles: dict[str, Path], tmp_path: Path) -> None:
    for chunk, want in ((100, {7}), (5, {5})):  # the handmade bundle's own chunk is 7
        backend = make_rig(bundles["handmade"], tmp_path / str(chunk), Limits(1, 64, chunk)).model.backend
        assert {backend.width("prompt", new) for new in range(1, 6)} == want
    backend = make_rig(bundles["wide"], tmp_path / "wide", Limits(1, 64, 100)).model.backend
    assert [backend.width("prompt", n) for n in (1, 16, 17, 33, 65, 100)] == [16, 16, 32, 64, 100, 100]
    assert backend.width("step", 1) == 1


def test_chunks_are_no_wider_than_engines_are_built_for(bundles: dict[str, Path], tmp_path: Path) -> None:
    rig = make_rig(bundles["handmade"], tmp_path / "engines", Limits(1, 512, 5))
    ids = list(range(1, 24))
    with rig.ort.session() as want, rig.model.session() as found:
        same_logits(found.prefill([ids]), want.prefill([ids]))
        same_rows(want, found)
    assert rig.trt.runs == 5


@pytest.mark.parametrize("damage", ["a byte", "shorter", "gone"])
def test_an_engine_file_that_is_not_what_was_built_is_not_loaded(
    bundles: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    bundle = Bundle.open(bundles["handmade"])
    device, folder = FakeDevice(), tmp_path / "engines"
    built = fake_tensorrt.build(bundle, folder, LIMITS)
    path = folder / "prompt.engine"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "shorter" else data[:-1] + b" ")
    with pytest.raises(EngineError, match=r"prompt\.engine: .*build the engines again"):
        TensorrtBackend(bundle, fake_tensorrt.library(device), built, folder, device)  # type: ignore[arg-type]


def test_engines_of_another_bundle_are_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    built = fake_tensorrt.build(Bundle.open(bundles["float"]), tmp_path / "engines", LIMITS)
    device, bundle = FakeDevice(), Bundle.open(bundles["handmade"])
    library = fake_tensorrt.library(device)
    with pytest.raises(EngineError, match="engines of another bundle"):
        TensorrtBackend(bundle, library, built, tmp_path / "engines", device)  # type: ignore[arg-type]
