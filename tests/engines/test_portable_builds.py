"""The portable graphs of every family build into TensorRT-RTX engines, on a machine with no GPU.

Building is parsing and compiling ahead of time; nothing is run here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mla_export.export import export
from tests.checkpoints import FAMILIES, make_checkpoint

if "CI" in os.environ:  # there a missing package must not pass for a build that works
    import tensorrt_rtx as trt
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")

# The least, best and most of each symbol of the contract, in a step and in a prompt.
PROFILES = {
    "step": {"B": (1, 1, 4), "S": (1, 1, 4), "T": (1, 128, 256), "N": (1, 1, 4)},
    "prompt": {"B": (1, 1, 4), "S": (1, 64, 64), "T": (1, 128, 256), "N": (1, 1, 4)},
}


@pytest.fixture(scope="module")
def logger():
    """The bindings keep the first logger they see for the life of the process."""
    return trt.Logger(trt.Logger.ERROR)


# Every family with a cache of floats; rows in int8 with and without int8 rotary keys.
EXPORTS = {
    **{family: (family, {}) for family in FAMILIES},
    "int8 rows": ("deepseek_v3", {"cache": "int8"}),
    "int8 rows, merged": ("deepseek_v2", {"cache": "int8", "cache_rope": "int8", "absorb": "merged"}),
}


@pytest.fixture(scope="module", params=EXPORTS)
def bundle(request, tmp_path_factory) -> Path:
    family, options = EXPORTS[request.param]
    folder = tmp_path_factory.mktemp(family)
    layers = {"num_hidden_layers": 2}
    if family == "glm4_moe_lite":
        layers["mlp_layer_types"] = ["dense", "sparse"]
    source = make_checkpoint(folder / "checkpoint", family, **layers)
    return export(source, folder / "bundle", dtype="fp16", max_context=64, chunk=32, **options)


def shapes(manifest: dict) -> Iterator[tuple[str, list[int | str]]]:
    for tensor in manifest["inputs"]:
        yield tensor["name"], tensor["shape"]
    for tensor in manifest["cache"]:
        yield tensor["past"], ["B", "T", *tensor["row"]]


@pytest.mark.parametrize("phase", PROFILES)
def test_engine_builds(bundle, phase, logger):
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle / f"{phase}.onnx"))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    assert parsed, [(error.node_name(), error.desc()) for error in errors]
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
    assert engine.nbytes > 0
