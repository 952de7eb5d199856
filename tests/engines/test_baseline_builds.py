"""The graphs that MLA is compared with build into TensorRT-RTX engines, as those of bundles do."""

from __future__ import annotations

import os

import onnx_ir as ir
import pytest

from mla_export.attention.cases import drawn_weights, tables
from mla_graphs.baselines import Attention, layer
from mla_graphs.lowering import lower
from tests.baselines import CASES, SHAPE

if "CI" in os.environ:  # there a missing package must not pass for a build that works
    import tensorrt_rtx as trt
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")

# the least, best and most of each symbol
PROFILE = {"B": (1, 1, 4), "S": (1, 1, 4), "T": (1, 128, 256)}


@pytest.fixture(scope="module")
def logger():
    """The bindings keep the first logger they see for the life of the process."""
    return trt.Logger(trt.Logger.ERROR)


def with_weights(attention: Attention) -> ir.Model:
    model = layer(attention)
    weights = {**drawn_weights(attention, model), **tables(attention.shape, 300)}
    for name, value in model.graph.initializers.items():
        if name in weights:
            value.const_value = ir.tensor(weights[name], name=name)
            value.shape = ir.Shape(weights[name].shape)
    return lower(model, "portable", "step")


def bounds(shape) -> list[list[int]]:
    """Least, best and most of a shape; `6*B` is a multiple of a symbol."""
    found = []
    for i in range(3):
        sizes = []
        for dim in shape:
            factor, _, symbol = str(dim).rpartition("*")
            sizes.append(dim if isinstance(dim, int) else int(factor or 1) * PROFILE[symbol][i])
        found.append(sizes)
    return found


@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_engine_builds(kind, cache, logger):
    model = with_weights(Attention(SHAPE, kind, cache))
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(ir.to_proto(model).SerializeToString())
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    assert parsed, [(error.node_name(), error.desc()) for error in errors]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for value in model.graph.inputs:
        dims = [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
        profile.set_shape(value.name, *bounds(dims))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 0
