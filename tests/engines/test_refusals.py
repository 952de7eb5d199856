"""Refusals of TensorRT-RTX's parser, provoked, and what becomes of its words. No GPU is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mla_export.export import export
from mla_runtime.engines.parts import part
from mla_runtime.engines.refusals import ParserError, errors_of, refusal, said_by
from mla_runtime.errors import EngineError
from tests.checkpoints import make_checkpoint
from tests.engines import graphs as made
from tests.quick_trace import quick_tracing

if "CI" in os.environ:  # there a missing package must not pass for one that refuses
    import tensorrt_rtx as trt
else:
    trt = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")


class Silent(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity, message) -> None:
        pass


LOGGER = Silent()  # the bindings keep the first logger they see


def refused(path: Path) -> EngineError:
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    assert not parser.parse_from_file(str(path))
    return refusal(path, "tensorrt-rtx", trt.__version__, errors_of(parser))


# what is refused -> what is said of it, what to choose
CASES = {
    "two widths": (made.attention_of_two_widths, "Key and Value must have the same shape", "written out"),
    "int8 scatter": (made.int8_scatter, "cache has type Int8 but must have type", "the runtime appends them"),
    "unknown": (made.unknown_operator, "its parser has no such operator", "--target portable"),
    "not there": (made.not_there, "its parser has no such operator", "--target portable"),
    "a token": (made.scale_a_token, "does not take these shapes or types", "multiplies by the scales"),
    "zero point": (made.zero_point, "Non-zero zero point is not supported", "--weights int8 or int4"),
    "packed": (made.packed_weights, "input tensor A must be FP16", "--target portable"),
    "two types": (made.two_types, "must have same input types", "mla-export inspect"),
    "uint8": (made.foreign_type, "unsupported input type of UINT8", "--target portable"),
    "reduced": (lambda: made.scatter(reduction="add"), "reduction is not supported", "export it again"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_names_the_node_its_part_and_what_to_choose(tmp_path, case):
    model, said, instead = CASES[case]
    text = str(refused(made.written(tmp_path, model())))
    operator = model().graph.node[0].op_type
    start = f"{tmp_path / 'step.onnx'}: tensorrt-rtx {trt.__version__} refuses {operator} '{made.NODE}'"
    assert text.startswith(f"{start} (layer 3, attention): ")
    assert said in text
    assert instead in text
    for noise in ("/_src/", "Error Code", "Assertion failed", "cudaError", "\n"):
        assert noise not in text


def test_an_error_of_no_node(tmp_path):
    text = str(refused(made.written(tmp_path, made.foreign_input())))
    assert "refuses it: " in text
    assert "''" not in text


def test_a_bundle_for_onnx_runtime(tmp_path):
    source = make_checkpoint(tmp_path / "checkpoint", "youtu", num_hidden_layers=1)
    with quick_tracing():
        bundle = export(source, tmp_path / "bundle", target="ort-cpu", weights="int4", max_context=64)
    text = str(refused(next(bundle.glob("*.onnx"))))
    assert "MatMulNBits" in text
    assert "(layer 0, attention)" in text
    assert "export with --target portable" in text


def test_more_than_one_error_is_counted(tmp_path):
    path = made.written(tmp_path, made.not_there())
    error = ParserError(made.NODE, "MatMulInteger", "false", "UNSUPPORTED_NODE")
    assert "; and 1 more node; " in str(refusal(path, "tensorrt", "10.3.0", [error] * 2))
    assert "; and 2 more nodes; " in str(refusal(path, "tensorrt", "10.3.0", [error] * 3))


def test_a_refusal_without_an_error(tmp_path):
    path = made.written(tmp_path, made.not_there())
    assert "does not say why" in str(refusal(path, "tensorrt", "10.3.0", []))


def test_a_file_that_is_none_has_a_message_all_the_same(tmp_path):
    error = ParserError("", "", "Failed to parse the file", "MODEL_DESERIALIZE_FAILED")
    text = str(refusal(tmp_path / "gone.onnx", "tensorrt", "10.3.0", [error]))
    assert "Failed to parse the file" in text


def test_the_words_of_older_parsers():
    # as onnx-tensorrt 10.0 to 10.8 says it
    words = 'Assertion failed: !attrs.count("reduction"): Attribute reduction is not supported.'
    error = ParserError("n", "ScatterND", words, "UNSUPPORTED_NODE_ATTR")
    assert said_by(error) == "Attribute reduction is not supported"


def test_a_long_description_is_cut():
    assert len(said_by(ParserError("n", "Add", "x" * 1000, "INVALID_NODE"))) == 160


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("layers.12.moe.experts.gate_up", "layer 12, experts"),
        ("layers.0.mlp.down", "layer 0, feed-forward"),
        ("layers.1.new", "layer 1"),
        ("head.logits", "output head"),
        ("visibility.past_rows", "which rows are seen"),
        ("node_7", None),
        ("", None),
    ],
)
def test_the_part_of_the_model_is_read_off_a_name(node, expected):
    assert part(node) == expected
