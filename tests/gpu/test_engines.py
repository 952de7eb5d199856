"""Engines on the card at hand against ONNX Runtime, and against the same model in float32.

A flavour that does not take the card is no failure of these tests: what it said goes to a file, in the folder
that MLA_EXPORT_GPU_RECORD names (out/gpu), and the tests of engines are skipped with it.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest

import mla_runtime
from mla_export.export import export
from mla_runtime.backends.tensorrt import TensorrtBackend
from mla_runtime.bundle import Bundle
from mla_runtime.engines.flavour import FLAVOURS, THIS
from mla_runtime.engines.record import Limits
from mla_runtime.errors import BackendError, EngineError
from mla_runtime.model import Model
from tests.checkpoints import make_checkpoint
from tests.gpu.conftest import gpu
from tests.gpu.held import STEPS, hold
from tests.quick_trace import quick_tracing
from tests.runtime.rig import make_rig

PROMPTS = [[5, 3, 9, 11, 2, 8, 40], [7], list(range(1, 30)), [4, 4, 50]]
LIMITS = Limits(4, 512, 16)
EXPORTS = {
    "fp32": {},
    "fp32, int8 rows": {"cache": "int8"},
    "fp16": {"dtype": "fp16"},
    "fp16, int8 rows": {"dtype": "fp16", "cache": "int8"},
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    source = make_checkpoint(root / "checkpoint", "deepseek_v3", num_hidden_layers=2)
    with quick_tracing():
        return {
            name: export(
                source, root / name.replace(", ", "-").replace(" ", "-"), max_context=512, chunk=16, **options
            )
            for name, options in EXPORTS.items()
        }


def record(flavour: str, said: str) -> None:
    """Keep what a flavour said, for whoever reads of this run."""
    folder = Path(os.environ.get("MLA_EXPORT_GPU_RECORD", "out/gpu"))
    folder.mkdir(parents=True, exist_ok=True)
    card = gpu()
    text = json.dumps({"flavour": flavour, "gpu": card.name, "card": card.card, "said": said}, indent=1)
    (folder / f"refusal-{flavour}.json").write_text(text + "\n")


def engines(flavour: str, path: Path, folder: Path) -> Model:
    """The bundle on engines built here; skips where the flavour is not there or takes no such card."""
    gpu()
    bundle = Bundle.open(path)
    folder.mkdir()
    try:
        library = FLAVOURS[flavour].load()
    except BackendError as cause:
        pytest.skip(str(cause))
    build = importlib.import_module("mla_runtime.engines.build").build
    try:
        built = build(bundle, library, (THIS,), LIMITS, folder)
        return Model(bundle, TensorrtBackend(bundle, library, built, folder))
    except EngineError as cause:
        record(flavour, str(cause))
        pytest.skip(str(cause))


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_engines_compute_what_onnx_runtime_and_float32_do(
    exports: dict[str, Path], tmp_path: Path, flavour: str, name: str, batch: int
) -> None:
    with (
        engines(flavour, exports[name], tmp_path / "engines") as model,
        mla_runtime.open(exports[name], threads=1) as same,
        mla_runtime.open(exports["fp32"], threads=1) as reference,
    ):
        held = hold(model, same, reference, PROMPTS[:batch])
        assert held.passed, held
        with model.session(batch, 400) as session:
            session.prefill_top(PROMPTS[:batch], 1)
            for _ in range(STEPS):
                session.step_top([1] * batch, 1)
            steps = session._buffers.steps  # type: ignore[attr-defined]
            assert steps.captures >= 1, steps.uncaptured


def test_what_holds_them_passes_the_same_model_and_fails_another(
    exports: dict[str, Path], tmp_path: Path
) -> None:
    rig = make_rig(exports["fp32, int8 rows"], tmp_path / "same")
    with mla_runtime.open(exports["fp32"], threads=1) as reference:
        held = hold(rig.model, rig.ort, reference, PROMPTS)
        assert held.passed, held
    with quick_tracing():
        source = make_checkpoint(tmp_path / "other", "deepseek_v3", num_hidden_layers=2, seed=7)
        path = export(source, tmp_path / "wrong", max_context=512, chunk=16)
    with mla_runtime.open(path, threads=1) as wrong:
        assert not hold(rig.model, wrong, wrong, PROMPTS).passed
