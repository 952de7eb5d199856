"""Layer by layer a model computes what its whole graphs compute, and one layer is loaded at a time."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import onnxruntime
import pytest

import mla_runtime
from mla_export.export import export
from mla_runtime.errors import ExportError
from tests.checkpoints import VARIANTS, make_checkpoint, read_tensors, write_tensors
from tests.quick_trace import quick_tracing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3", num_hidden_layers=3)


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    family, own = VARIANTS["v3_tied"]
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", family, **own)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk": 3},  # the prompt in three pieces
        {"absorb": "merged"},
        {"absorb": "expanded"},
        {"cache": "int8", "cache_rope": "int8"},
        {"target": "ort-cpu", "weights": "int4", "cache": "int8"},
    ],
    ids=str,
)
def test_the_canary_is_exactly_that_of_the_whole_graphs(checkpoint, tmp_path, options):
    with quick_tracing():
        bundle = export(checkpoint, tmp_path / "bundle", **options)
    with mla_runtime.open(bundle) as model:
        assert mla_runtime.check_canary(model).error == 0.0


@pytest.mark.parametrize("options", [{}, {"target": "ort-cpu", "weights": "int4"}], ids=str)
def test_the_canary_of_a_tied_head(tied, tmp_path, options):
    with quick_tracing():
        bundle = export(tied, tmp_path / "bundle", **options)
    with mla_runtime.open(bundle) as model:
        assert mla_runtime.check_canary(model).error == 0.0


def test_float16_differs_by_the_rounding_between_layers_only(checkpoint, tmp_path):
    """ONNX Runtime computes the whole graph in float32 and rounds nowhere between layers."""
    with quick_tracing():
        bundle = export(checkpoint, tmp_path / "bundle", dtype="fp16")
    with mla_runtime.open(bundle) as model:
        found = mla_runtime.check_canary(model)
    assert found.error <= found.tolerance / 10


def test_one_block_is_loaded_at_a_time(checkpoint, tmp_path, monkeypatch):
    alive, most, loaded = 0, 0, 0
    real = onnxruntime.InferenceSession

    class Counted(real):
        def __init__(self, *args, **kwargs):
            nonlocal alive, most, loaded
            alive, loaded = alive + 1, loaded + 1
            most = max(most, alive)
            super().__init__(*args, **kwargs)

        def __del__(self):
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(onnxruntime, "InferenceSession", Counted)
    gc.disable()  # what only the collector frees would stay as long as it pleases
    try:
        with quick_tracing():
            export(checkpoint, tmp_path / "bundle", dtype="fp16")
    finally:
        gc.enable()
    assert (loaded, most) == (15, 1)  # prelude, three layers and head: prompt, step, and range


def test_a_float32_overflow_names_the_layer(checkpoint, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    tensors = read_tensors(source)
    tensors["model.layers.1.self_attn.o_proj.weight"][:] = 3e38
    write_tensors(source, tensors)
    with pytest.raises(ExportError, match=r"layers\.1: its result is not finite in float32"), quick_tracing():
        export(source, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
