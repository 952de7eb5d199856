"""The table of what each TensorRT version's parser takes, and bundles held against it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mla_export.export import export
from mla_runtime.bundle import Bundle
from mla_runtime.engines import limits, versions
from mla_runtime.engines.node_types import typed_nodes
from mla_runtime.engines.onnx_nodes import read
from mla_runtime.engines.version_check import Graphs, Report, check, report, survey
from mla_runtime.errors import BundleError, EngineError
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.engines import graphs as made
from tests.quick_trace import quick_tracing

RAW = json.loads(Path(versions.__file__).with_name("versions.json").read_text(encoding="utf-8"))
PARTS = [*RAW["operators"], *RAW["refused"], *RAW["limits"], *RAW["jetpacks"]]
ROWS = [row for rows in RAW["versions"].values() for row in rows]

# Every family; every form, precision and kind of cache rows at least once.
EXPORTS = {
    "deepseek_v2": ("deepseek_v2", {"dtype": "fp16"}),
    "deepseek_v3": ("deepseek_v3", {"dtype": "fp16", "cache": "int8"}),
    "minicpm3": ("minicpm3", {"cache": "int8", "cache_rope": "int8", "absorb": "merged"}),
    "youtu": ("youtu", {"dtype": "fp16", "absorb": "expanded"}),
    "glm4_moe_lite": ("glm4_moe_lite", {"absorb": "merged"}),
}


@pytest.fixture(scope="module", params=EXPORTS)
def bundle(request, tmp_path_factory) -> Bundle:
    family, options = EXPORTS[request.param]
    folder = tmp_path_factory.mktemp(family)
    layers = {"num_hidden_layers": 2}
    if family == "glm4_moe_lite":
        layers["mlp_layer_types"] = ["dense", "sparse"]
    source = make_checkpoint(folder / "checkpoint", family, **layers)
    with quick_tracing():
        return Bundle.open(export(source, folder / "bundle", max_context=64, chunk=32, **options))


def graphs_of(folder: Path, model: onnx.ModelProto) -> Graphs:
    return Graphs.read({"step": made.written(folder, model)})


def found(folder: Path, model: onnx.ModelProto, target: str) -> Report:
    return report(graphs_of(folder, model), target)


def test_every_family_is_tried():
    assert {family for family, _ in EXPORTS.values()} == set(FAMILIES)


def test_every_entry_names_its_sources():
    for part in PARTS:
        assert part["sources"], part
    for row in ROWS:
        assert row["sources"] or not row.get("known", True), row
    named = {source for part in (*PARTS, *ROWS) for source in part["sources"]}
    assert named == set(RAW["sources"])


def test_versions_rise_and_opsets_with_them():
    for rows in versions.table().versions.values():
        assert [row.number for row in rows] == sorted({row.number for row in rows})
        opsets = [row.opset for row in rows if row.opset is not None]
        assert opsets == sorted(opsets)


def test_every_rule_is_one_that_can_be_decided(tmp_path):
    typed = next(typed_nodes(read(made.written(tmp_path, made.scatter()))))
    for limit in RAW["limits"]:
        assert limits.keeps(typed, limit["rule"]) in (True, False)
    with pytest.raises(ValueError, match="unknown rule"):
        limits.keeps(typed, "is pretty")


def test_every_limit_and_type_is_of_a_listed_operator():
    listed = {name for row in RAW["operators"] for name in row["names"]}
    assert {name for row in RAW["limits"] for name in row["names"]} <= listed
    assert not listed & {name for row in RAW["refused"] for name in row["names"]}


def test_the_types_of_every_value_are_found(bundle):
    graphs = Graphs.of(bundle)
    assert {phase for phase, *_ in graphs.nodes} == {"step", "prompt"}
    for _, typed, _ in graphs.nodes:
        assert typed.data.dtype, typed.node
        assert all(value.dtype for value in typed.outputs), typed.node


def test_nodes_that_are_alike_are_counted(bundle):
    graphs = Graphs.of(bundle)
    for phase in ("step", "prompt"):
        nodes = list(typed_nodes(read(bundle.paths[bundle.graph(phase).file])))
        assert sum(count for of, _, count in graphs.nodes if of == phase) == len(nodes)
        assert len({typed.kind for typed in nodes}) < len(nodes)


def test_types_are_those_that_onnx_infers(bundle):
    for phase in ("step", "prompt"):
        path = bundle.paths[bundle.graph(phase).file]
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
        known = {
            value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            for value in model.graph.value_info
            if value.type.tensor_type.elem_type
        }
        found = {
            name: value.dtype
            for typed in typed_nodes(read(path))
            for name, value in zip(typed.node.outputs, typed.outputs, strict=True)
        }
        both = known.keys() & found.keys()
        assert len(both) > 100
        assert {name: found[name] for name in both} == {name: known[name] for name in both}


def test_a_portable_bundle_builds_from_10_3_on(bundle):
    for result in survey(bundle):
        if (result.version.known and result.version.number >= (10, 3)) or result.version.number == (1, 7):
            assert result.verdict == "builds", (result.version.name, result.problems)


def test_versions_that_are_too_old_or_unknown_say_so(bundle):
    old, unknown = report(bundle, "tensorrt 10.2"), report(bundle, "tensorrt-rtx 1.3")
    assert (old.verdict, unknown.verdict) == ("refused", "uncertain")
    assert "older than 10.3" in old.problems[0].what
    assert "no source" in unknown.problems[0].what
    assert report(bundle, "jetpack6.0").version.number == (8, 6)
    assert report(bundle, "jetpack6.0").verdict == "refused"


def test_jetpack_6_is_10_3(bundle):
    result = report(bundle, "jetpack6")
    assert (result.version.name, result.jetpacks) == ("TensorRT 10.3", ("6.1", "6.2"))
    assert report(bundle, "jetpack6.2").version == result.version


def test_a_version_after_the_newest_is_taken_for_it(bundle):
    newer = versions.table().version("tensorrt", (12, 1))
    assert check(bundle, newer) == []


@pytest.mark.parametrize("text", ["jetpack5", "jetson", "tensorrt", "tensorrt ten", "rtx 1.7", ""])
def test_a_version_that_is_none(bundle, text):
    with pytest.raises(EngineError):
        report(bundle, text)


def test_int4_is_not_certain_on_jetpack_6(tmp_path):
    result = found(tmp_path, made.blocks(), "jetpack6")
    assert result.verdict == "uncertain"
    (problem,) = result.problems
    assert problem.what == (
        "the graphs have opset 21, and no source tells of more than 20; "
        "the parser does not look, and may take them"
    )
    assert problem.instead == "int4 weights need opset 21: export with --weights int8"
    for target in ("tensorrt 10.6", "tensorrt 11.5", "jetpack7.2", "tensorrt-rtx 1.7"):
        assert found(tmp_path, made.blocks(), target).verdict == "builds", target


def test_int8_in_blocks_is_not_certain_and_a_scale_a_channel_is(tmp_path):
    assert "INT4 only" in found(tmp_path, made.blocks(made.I8), "tensorrt 10.6").problems[0].what
    assert found(tmp_path, made.blocks(made.I8), "tensorrt 11.0").verdict == "builds"
    given = [made.weights("w", made.I8, [64, 32]), made.constant("s", [1.0] * 32)]
    channel = made.node("DequantizeLinear", "w s", axis=1)
    model = made.made(channel, [], [("y", made.F32, [64, 32])], given)
    assert found(tmp_path, model, "jetpack6").verdict == "builds"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("target", ["jetpack6", "tensorrt-rtx 1.7", "tensorrt 11.5"])
def test_experts_gathered_from_int8_stacks_build(tmp_path, packed, target):
    assert found(tmp_path, made.gathered_experts(packed), target).problems == ()


REFUSED = {
    "attention": (made.attention_of_two_widths, "tensorrt 10.13", "came with 10.14"),
    "two widths": (made.attention_of_two_widths, "tensorrt-rtx 1.7", "keys and values of one shape"),
    "scatter": (made.int8_scatter, "tensorrt 10.15", "does not take int8 in TensorScatter"),
    "earlier": (made.int8_scatter, "tensorrt 10.3", "came with 10.15"),
    "missing": (made.not_there, "tensorrt 11.5", "has no MatMulInteger"),
    "a token": (made.scale_a_token, "tensorrt 10.3", "a scale whose shape is fixed"),
    "zero": (made.zero_point, "tensorrt 10.3", "zero points must be zero"),
    "packed": (made.packed_weights, "tensorrt 10.3", "not ONNX's own (com.microsoft)"),
    "packed, rtx": (made.packed_weights, "tensorrt-rtx 1.7", "has no MatMulNBits"),
    "uint8": (made.foreign_type, "tensorrt 10.3", "does not take uint8 in Gather"),
    "reduction": (lambda: made.scatter(reduction="none"), "tensorrt 10.8", '"none" too'),
    "reduced": (lambda: made.scatter(reduction="add"), "tensorrt 11.0", "takes no reduction"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_version_refuses(tmp_path, case):
    model, target, words = REFUSED[case]
    result = found(tmp_path, model(), target)
    assert result.verdict == "refused"
    assert words in result.problems[0].what
    assert result.problems[0].part == "layer 3, attention"
    assert result.problems[0].instead
    assert set(result.problems[0].sources) <= set(versions.table().sources)


def swish() -> onnx.ModelProto:
    return made.made(made.node("Swish", "x"), [("x", made.F32, [2])], [("y", made.F32, [2])], opset=24)


def scatter_without_reduction() -> onnx.ModelProto:
    return made.scatter(reduction="none")


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (scatter_without_reduction, "tensorrt 10.9"),
        (made.scatter, "tensorrt 10.3"),
        (swish, "tensorrt 11.0"),
    ],
)
def test_what_a_version_takes(tmp_path, model, target):
    assert found(tmp_path, model(), target).problems == ()


def test_an_operator_of_no_source_is_not_certain(tmp_path):
    result = found(tmp_path, made.unknown_operator(), "tensorrt 10.3")
    assert (result.verdict, result.problems[0].what) == ("uncertain", "is not known to have Frobnicate")


def test_what_many_nodes_have_is_said_once(tmp_path):
    first, second = made.node("Unique", "x", "a"), made.node("Unique", "x", "b")
    second.name = "layers.4.attention.scores"
    ends = [("a", made.F32, ["n"]), ("b", made.F32, ["n"])]
    model = made.made([first, second], [("x", made.F32, [8])], ends)
    (problem,) = found(tmp_path, model, "jetpack6").problems
    assert (problem.count, problem.node) == (2, made.NODE)


def test_nodes_of_a_loop_are_seen(tmp_path):
    inside = [("i", made.I64, []), ("go", made.BOOL, []), ("s", made.F32, [2, 4])]
    nodes = [made.node("MatMulInteger", "a w", "p"), helper.make_node("Cast", ["p"], ["q"], to=made.F32)]
    given = [helper.make_tensor_value_info(*end) for end in inside]
    out = [given[1], helper.make_tensor_value_info("q", made.F32, [2, 4])]
    body = helper.make_graph(nodes, "body", given, out)
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], name="layers.1.moe.tiles", body=body)
    ends = [("n", made.I64, []), ("x", made.F32, [2, 4]), ("a", made.I8, [2, 8]), ("w", made.I8, [8, 4])]
    result = found(tmp_path, made.made(loop, ends, [("y", made.F32, [2, 4])]), "jetpack6")
    assert [problem.operator for problem in result.problems] == ["MatMulInteger"]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"ir_version: 10", b"\x3a\x7f"])
def test_what_is_no_onnx_file(tmp_path, damage):
    path = tmp_path / "step.onnx"
    path.write_bytes(damage)
    with pytest.raises(BundleError, match="not an ONNX file"):
        read(path)


def test_damaged_files_are_read_or_refused(tmp_path):
    whole = made.blocks().SerializeToString()
    path = tmp_path / "step.onnx"
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: int(random.integers(1, len(whole) + 1))])
        damaged[int(random.integers(len(damaged)))] = int(random.integers(256))
        path.write_bytes(damaged)
        with contextlib.suppress(BundleError):
            list(typed_nodes(read(path)))


def test_graphs_in_graphs_without_end_are_refused(tmp_path):
    inner = helper.make_graph([], "g", [], [])
    for _ in range(20):
        held = helper.make_node("If", ["c"], ["y"], then_branch=inner)
        inner = helper.make_graph([held], "g", [], [])
    model = helper.make_model(inner)
    with pytest.raises(BundleError, match="nested deeper"):
        read(made.written(tmp_path, model))


def test_no_weights_are_read(tmp_path):
    tensor = TensorProto(name="w", data_type=made.F16, dims=[1 << 20, 1 << 20])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    ends = [[(name, made.F16, [1, 1 << 20])] for name in "xy"]
    model = made.made(made.node("MatMul", "x w"), *ends)
    model.graph.initializer.append(tensor)
    assert found(tmp_path, model, "jetpack6").verdict == "builds"
