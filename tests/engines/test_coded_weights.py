"""Weights in codes build into TensorRT-RTX engines that multiply with them in one kernel.

Weights stand outside the engine, as network inputs, but for int4, which is joined with its product as a
constant only. What an engine does is read from the names of its kernels.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from mla_export.export import export
from tests.checkpoints import make_checkpoint
from tests.engines.test_portable_builds import PROFILES, shapes

if "CI" in os.environ:
    import tensorrt_rtx as trt
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")

SMALL = 256  # constants of fewer elements stay in the engine
# widths that groups of 32 fill, so that every matrix has its bits
WIDE = {"v_head_dim": 16, "q_lora_rank": 64, "intermediate_size": 96}
MODELS = {
    "dense": ("youtu", {**WIDE, "tie_word_embeddings": False}),
    "experts": ("deepseek_v3", {**WIDE, "moe_intermediate_size": 32}),
}


@pytest.fixture(scope="module")
def logger():
    return trt.Logger(trt.Logger.ERROR)


@pytest.fixture(scope="module", params=["int8", "int4"])
def weights(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=MODELS)
def bundle(request, weights, tmp_path_factory) -> Path:
    family, own = MODELS[request.param]
    folder = tmp_path_factory.mktemp(family)
    source = make_checkpoint(folder / "checkpoint", family, num_hidden_layers=2, **own)
    return export(
        source, folder / "bundle", dtype="fp16", weights=weights, cache="int8", max_context=64, chunk=32
    )


def lift(network) -> None:
    """Make inputs of the large constants, but for int4 and its scales."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    users = [(layer, i, layer.get_input(i)) for layer in layers for i in range(layer.num_inputs)]
    kept = {
        value.name
        for layer in layers
        if layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.int4
        for value in (layer.get_input(0), layer.get_input(1))
    }
    for layer in layers:
        made = layer.get_output(0)
        if layer.type != trt.LayerType.CONSTANT or trt.volume(made.shape) < SMALL or made.name in kept:
            continue
        given = network.add_input(f"weight.{made.name}", made.dtype, tuple(made.shape))
        for user, place, value in users:
            if value is not None and value.name == made.name:
                user.set_input(place, given)


def kernels(bundle: Path, phase: str, logger) -> Counter[str]:
    """Build a phase's engine for SM86 and count its kernels by name."""
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle / f"{phase}.onnx"))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    lift(network)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shape in shapes(json.loads((bundle / "bundle.json").read_text())):
        bounds = [[PROFILES[phase][d][i] if isinstance(d, str) else d for d in shape] for i in range(3)]
        profile.set_shape(name, *bounds)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    found = re.findall(rb"(?:runtime_fusion|function)=\{ name=__myl_(\w+)", bytes(engine))
    return Counter(name.decode() for name in found)


def test_a_step_multiplies_with_codes_in_one_kernel(bundle, weights, logger):
    graph = ir.load(bundle / "step.onnx").graph
    read = [node.inputs[0] for node in graph if node.op_type == "DequantizeLinear"]
    codes = Counter(value.dtype.name for value in read if value.name.endswith(".weight.codes"))
    found = kernels(bundle, "step", logger)
    assert found["CastMulCastFc"] == codes["INT8"] > 0
    assert found["ReplCastMulCastFc"] == codes["INT4"]
    assert (codes["INT4"] > 0) == (weights == "int4")
    assert found["Resh"] == 0  # a copy of codes in another shape


def test_a_prompt_builds(bundle, logger):
    assert kernels(bundle, "prompt", logger)
