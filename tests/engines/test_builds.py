"""Bundles of every family and precision become TensorRT-RTX engines, on a machine with no GPU.

Building is parsing and compiling ahead of time; nothing is run here.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mla_export.export import export
from mla_runtime.bundle import Bundle
from mla_runtime.engines import network
from mla_runtime.engines.build import build
from mla_runtime.engines.record import Limits, parse
from mla_runtime.errors import EngineError
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.engines.bindings import LIBRARY
from tests.quick_trace import quick_tracing

CARDS = ("sm86", "sm89", "sm120")
LIMITS = Limits(batch=4, context=256, chunk=64)

# Every family; weights × cache, each pair once; the forms among them.
EXPORTS = {
    **{family: (family, {}) for family in FAMILIES},
    "fp16, int8 rows": ("deepseek_v3", {"cache": "int8"}),
    "fp16, int8 rows and keys": ("deepseek_v2", {"cache": "int8", "cache_rope": "int8", "absorb": "merged"}),
    "int8": ("deepseek_v2", {"weights": "int8"}),
    "int8, int8 rows": ("glm4_moe_lite", {"weights": "int8", "cache": "int8", "absorb": "merged"}),
    "int8, int8 rows and keys": ("minicpm3", {"weights": "int8", "cache": "int8", "cache_rope": "int8"}),
    "int4": ("youtu", {"weights": "int4", "absorb": "merged"}),
    "int4, int8 rows": ("deepseek_v3", {"weights": "int4", "cache": "int8"}),
    "int4, int8 rows and keys": ("minicpm3", {"weights": "int4", "cache": "int8", "cache_rope": "int8"}),
    "expanded": ("deepseek_v2", {"absorb": "expanded", "dtype": "fp32"}),
}


def make(folder: Path, family: str, **options) -> Bundle:
    layers = {"num_hidden_layers": 2}
    if family == "glm4_moe_lite":
        layers["mlp_layer_types"] = ["dense", "sparse"]
    changes = options.pop("changes", {})
    source = make_checkpoint(folder / "checkpoint", family, **{**layers, **changes})
    options = {"dtype": "fp16", "max_context": 256, "chunk": 64, **options}
    with quick_tracing():
        return Bundle.open(export(source, folder / "bundle", **options))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    """A mixture of experts in fp16."""
    return make(tmp_path_factory.mktemp("small"), "deepseek_v2", cache="int8")


@pytest.fixture
def all_outside(monkeypatch):
    """Weights of small models stand outside too."""
    monkeypatch.setattr(network, "SMALL", 0)


@pytest.mark.parametrize("name", EXPORTS)
def test_engines_are_built(name, tmp_path, all_outside):
    family, options = EXPORTS[name]
    bundle = make(tmp_path, family, **options)
    out = tmp_path / "engines"
    out.mkdir()
    built = build(bundle, LIBRARY, CARDS, LIMITS, out)
    together = options.get("weights") == "int4" and family in ("youtu", "minicpm3")
    assert [engine.profiles for engine in built.engines] == (
        [{"step": 0, "prompt": 1}] if together else [{"step": 0}, {"prompt": 0}]
    )
    for engine in built.engines:
        assert (out / engine.file).stat().st_size == engine.size > 0
    assert parse(json.loads(json.dumps(built.json())), "record") == built
    assert set(weights_of(bundle)) == {weight.name for weight in built.outside}


def weights_of(bundle: Bundle) -> list[str]:
    """What an engine should not hold: all weights but those in int4, and scales that dequantise."""
    names = []
    for graph in bundle.manifest.graphs.values():
        model = onnx.load(bundle.paths[graph.file], load_external_data=False)
        held = {
            name
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
            for name in node.input[0 if is_int4(model, node.input[0]) else 1 :]
        }
        for tensor in model.graph.initializer:
            if tensor.external_data and tensor.name not in held:
                names.append(tensor.name)
    return names


def is_int4(model: onnx.ModelProto, name: str) -> bool:
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return types.get(name) == onnx.TensorProto.INT4


def test_weights_outside_are_found_where_the_record_says(small, tmp_path, all_outside):
    built = build(small, LIBRARY, ("sm86",), LIMITS, tmp_path)
    model = onnx.load(small.paths["step.onnx"])  # reads the weights itself
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for weight in built.outside:
        data = np.fromfile(small.paths[weight.file], np.uint8, weight.nbytes, offset=weight.offset)
        found = data.view(weight.dtype).reshape(weight.shape)
        np.testing.assert_array_equal(found, expected[weight.name])


def test_engines_are_smaller_by_the_weights_outside(tmp_path, monkeypatch):
    bundle = make(tmp_path, "youtu", changes={"vocab_size": 20000})
    sizes = {}
    for least in (0, 2**40):
        monkeypatch.setattr(network, "SMALL", least)
        out = tmp_path / str(least)
        out.mkdir()
        built = build(bundle, LIBRARY, ("sm86",), LIMITS, out)
        sizes[least] = built.engine("step").size
        outside = sum(weight.nbytes for weight in built.outside)
        assert (outside > 0) == (least == 0)
        if least == 0:
            taken = outside
    assert sizes[2**40] - sizes[0] > 0.9 * taken


def test_as_many_experts_as_published_models_have(tmp_path):
    """A number of trips that follows from the choice of experts built with eight of them, in one layer."""
    changes = {"n_routed_experts": 384, "moe_intermediate_size": 8, "num_hidden_layers": 4}
    bundle = make(tmp_path, "deepseek_v2", changes=changes)
    built = build(bundle, LIBRARY, ("sm89",), LIMITS, tmp_path)
    assert len(built.engines) == 2


def test_graphs_for_another_runtime_are_refused(tmp_path):
    bundle = make(tmp_path, "youtu", dtype="fp32", target="ort-cpu")
    with pytest.raises(EngineError, match="its graphs are for ort-cpu; TensorRT builds those of --target"):
        build(bundle, LIBRARY, CARDS, LIMITS, tmp_path)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(small, tmp_path):
    first, *others = small.manifest.cache
    manifest = replace(small.manifest, cache=(replace(first, dtype="float16"), *others))
    with pytest.raises(EngineError, match=rf"input '{first.past}' is int8 to TensorRT and float16 in bundle"):
        build(replace(small, manifest=manifest), LIBRARY, CARDS, LIMITS, tmp_path)
    manifest = replace(small.manifest, cache=tuple(others))
    with pytest.raises(EngineError, match=rf"input '{first.past}' is int8 to TensorRT and absent in bundle"):
        build(replace(small, manifest=manifest), LIBRARY, CARDS, LIMITS, tmp_path)


def test_progress_is_told_and_ctrl_c_ends_a_build(small, tmp_path):
    told = []
    build(small, LIBRARY, ("sm86",), LIMITS, tmp_path, lambda *what: told.append(what))
    label, done, total = told[-1]
    assert done == total > 0
    assert (label, 0, total) in told

    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(small, LIBRARY, ("sm86",), LIMITS, tmp_path, interrupt)


def test_ctrl_c_in_the_middle_of_compiling_ends_a_build(small, tmp_path, capsys):
    """Raised inside of TensorRT it was dropped, and the build went on."""
    before = signal.getsignal(signal.SIGINT)

    def pressed(label: str, done: int, total: int) -> None:
        if done == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(small, LIBRARY, ("sm86",), LIMITS, tmp_path, pressed)
    assert signal.getsignal(signal.SIGINT) is before
    assert "press Ctrl-C again to end at once" in capsys.readouterr().err
    assert not list(tmp_path.glob("prompt*"))


def test_a_node_that_tensorrt_refuses_is_named(small, tmp_path):
    model = onnx.load(small.paths["step.onnx"], load_external_data=False)
    model.graph.node[5].op_type = "NoSuchOperator"
    folder = tmp_path / "changed"
    folder.mkdir()
    onnx.save(model, folder / "step.onnx")
    (folder / "weights.data").symlink_to(small.paths["weights.data"].resolve())
    changed = replace(small, paths={**small.paths, "step.onnx": folder / "step.onnx"})
    with pytest.raises(EngineError, match=f"refuses NoSuchOperator '{model.graph.node[5].name}'"):
        build(changed, LIBRARY, CARDS, LIMITS, tmp_path)
