"""Weights in codes build into TensorRT-RTX engines that multiply with them in one kernel.

Weights stand outside the engine, as network inputs, but for int4, which is joined with its product as a
constant only. What an engine does is read from the names of its kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from mla_export.export import export
from mla_runtime.bundle import Bundle
from mla_runtime.engines import network
from mla_runtime.engines.build import build
from mla_runtime.engines.record import Limits
from mla_runtime.manifest import Phase
from tests.checkpoints import make_checkpoint
from tests.engines.bindings import LIBRARY
from tests.quick_trace import quick_tracing

SMALL = 512  # bytes of a constant that stays in the engine
# widths that groups of 32 fill, so that every matrix has its bits
WIDE = {"v_head_dim": 16, "q_lora_rank": 64, "intermediate_size": 96}
MODELS = {
    "dense": ("youtu", {**WIDE, "tie_word_embeddings": False}),
    "experts": ("deepseek_v3", {**WIDE, "moe_intermediate_size": 32}),
}


@pytest.fixture(scope="module", params=["int8", "int4"])
def weights(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def bundle(request, weights, tmp_path_factory) -> Bundle:
    family, own = MODELS[request.param]
    folder = tmp_path_factory.mktemp(family)
    source = make_checkpoint(folder / "checkpoint", family, num_hidden_layers=2, **own)
    options = {"dtype": "fp16", "weights": weights, "cache": "int8", "max_context": 64, "chunk": 32}
    with quick_tracing():
        return Bundle.open(export(source, folder / "bundle", **options))


def kernels(bundle: Bundle, phase: Phase, folder: Path, monkeypatch, batch: int = 4) -> Counter[str]:
    """Build for SM86 and count the kernels of a phase's engine by name."""
    monkeypatch.setattr(network, "SMALL", SMALL)
    built = build(bundle, LIBRARY, ("sm86",), Limits(batch, context=64, chunk=32), folder)
    engine = (folder / built.engine(phase).file).read_bytes()
    found = re.findall(rb"(?:runtime_fusion|function)=\{ name=__myl_(\w+)", engine)
    return Counter(name.decode() for name in found)


def test_a_step_multiplies_with_codes_in_one_kernel(bundle, weights, tmp_path, monkeypatch):
    graph = ir.load(bundle.paths["step.onnx"]).graph
    read = [node.inputs[0] for node in graph if node.op_type == "DequantizeLinear"]
    codes = Counter(value.dtype.name for value in read if value.name.endswith(".weight.codes"))
    found = kernels(bundle, "step", tmp_path, monkeypatch)
    phases = 2 if (tmp_path / "step-prompt.engine").exists() else 1
    assert found["CastMulCastFc"] == phases * codes["INT8"] > 0
    assert found["ReplCastMulCastFc"] == phases * codes["INT4"]
    assert (codes["INT4"] > 0) == (weights == "int4")
    assert found["Resh"] == 0  # a copy of codes in another shape
    assert not dequantised_alone(found)


def test_a_step_of_one_sequence_sums_over_codes(bundle, tmp_path, monkeypatch):
    found = kernels(bundle, "step", tmp_path, monkeypatch, batch=1)
    if (tmp_path / "step.engine").exists():  # else a prompt's kernels are among them
        assert not dequantised_alone(found)
    assert any(re.search("CastMulCast.*MulSum", name) for name in found)


def dequantised_alone(found: Counter[str]) -> list[str]:
    """Kernels that write weights out in floats."""
    return [name for name in found if name in ("CastMulCast", "ReplCastMulCast")]


def test_a_prompt_builds(bundle, tmp_path, monkeypatch):
    assert kernels(bundle, "prompt", tmp_path, monkeypatch)
