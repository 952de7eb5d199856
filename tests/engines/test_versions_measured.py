"""What the table says of the TensorRT-RTX that is installed, asked of its own parser. No GPU is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mla_runtime.engines import versions
from tests.engines import graphs as made
from tests.engines.operators import smallest

if "CI" in os.environ:  # there a missing package must not pass for one that says the same
    import tensorrt_rtx as trt
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")

RAW = json.loads(Path(versions.__file__).with_name("versions.json").read_text(encoding="utf-8"))
SOURCE = "measured-rtx-1.7"
TAKEN = sorted(
    {
        (name, dtype)
        for row in RAW["operators"]
        if SOURCE in row["sources"]
        for name in row["names"]
        for dtype in (RAW["types"][row["types"]] if isinstance(row["types"], str) else row["types"])
    }
)
ABSENT = sorted(name for row in RAW["refused"] if SOURCE in row["sources"] for name in row["names"])

needs_that_version = pytest.mark.skipif(
    not trt.__version__.startswith("1.7."), reason="the table was measured with 1.7"
)


class Silent(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity, message) -> None:
        pass


LOGGER = Silent()  # the bindings keep the first logger they see


@pytest.fixture(scope="module")
def builder():
    return trt.Builder(LOGGER)


def refused(builder, model) -> list[str]:
    """What its parser says against a graph; the network has to live as long as the parser."""
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    parser.parse(model.SerializeToString())
    return [parser.get_error(place).desc() for place in range(parser.num_errors)]


@needs_that_version
@pytest.mark.parametrize(("operator", "dtype"), TAKEN)
def test_it_takes_what_the_table_says(builder, operator, dtype):
    assert refused(builder, smallest(operator, dtype)) == []


@needs_that_version
@pytest.mark.parametrize("operator", ABSENT)
def test_it_has_not_what_the_table_says(builder, operator):
    network = builder.create_network(0)
    assert not trt.OnnxParser(network, LOGGER).supports_operator(operator)


@needs_that_version
def test_its_parser_does_not_look_at_the_opset(builder):
    model = made.made(made.node("Relu", "x"), [("x", made.F32, [2])], [("y", made.F32, [2])], opset=99)
    assert refused(builder, model) == []


@needs_that_version
def test_it_takes_int4_in_blocks_at_opset_21(builder):
    assert refused(builder, made.blocks()) == []


@needs_that_version
@pytest.mark.parametrize("packed", [False, True])
def test_it_takes_experts_out_of_an_int8_stack(builder, packed):
    assert refused(builder, made.gathered_experts(packed)) == []


@needs_that_version
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_has_no_packed_products_of_onnx_runtime(builder, dtype):
    assert refused(builder, smallest("com.microsoft:MatMulNBits", dtype))
