"""The TensorRT versions that a bundle builds on, as `inspect` says them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from mla_export import cli
from mla_export.commands.engine_versions import facts, lines
from mla_export.export import export
from mla_runtime.bundle import Bundle
from mla_runtime.engines.version_check import Graphs, report, survey
from tests.checkpoints import make_checkpoint
from tests.engines import graphs as made
from tests.quick_trace import quick_tracing


def graphs_of(folder: Path, model: onnx.ModelProto) -> Graphs:
    return Graphs.read({"step": made.written(folder, model)})


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint", "youtu", num_hidden_layers=1)


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory) -> Path:
    with quick_tracing():
        return export(source, tmp_path_factory.mktemp("portable") / "bundle", max_context=64)


def test_a_portable_bundle_names_its_versions_and_jetpacks(bundle, capsys):
    assert cli.main(["inspect", str(bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    jetpacks = "JetPack 6.1, 6.2, 7.1, 7.2"
    assert f"builds on TensorRT 10.3 and later ({jetpacks}); TensorRT-RTX 1.7 and later" in shown
    assert "uncertain on TensorRT-RTX 1.0 to 1.6: no source tells what its parser takes" in shown


def test_json_has_every_version_with_its_problems(bundle, capsys):
    assert cli.main(["inspect", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["bundle"]["tensorrt"]
    verdicts = {(row["flavour"], row["version"]): row["verdict"] for row in found}
    assert verdicts["tensorrt", "10.3"] == verdicts["tensorrt-rtx", "1.7"] == "builds"
    assert verdicts["tensorrt", "8.6"] == "refused"
    (old,) = (row for row in found if row["version"] == "10.2")
    assert "older than 10.3" in old["problems"][0]["what"]
    assert [row["jetpacks"] for row in found if row["version"] == "10.3"] == [["6.1", "6.2"]]


def test_a_bundle_for_onnx_runtime_builds_on_none(source, tmp_path, capsys):
    with quick_tracing():
        made_for_ort = export(source, tmp_path / "bundle", target="ort-cpu", weights="int4", max_context=64)
    assert cli.main(["inspect", str(made_for_ort)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "builds on" not in shown
    assert "not on TensorRT 10.3 and later" in shown
    assert "does not take uint8 in Gather, one of 3 reasons; export with --target portable" in shown


def test_int4_weights_are_uncertain_where_their_opset_is(tmp_path):
    told = dict(facts(survey(graphs_of(tmp_path, made.blocks()))))
    assert told["builds on"] == "TensorRT 10.6 and later (JetPack 7.1, 7.2); TensorRT-RTX 1.7 and later"
    assert told["uncertain on"].startswith(
        "TensorRT 10.3 to 10.5 (JetPack 6.1, 6.2): the graphs have opset 21"
    )
    assert told["uncertain on"].endswith("export with --weights int8")


def test_a_report_says_each_problem_on_a_line(tmp_path):
    first, *rest = lines(report(graphs_of(tmp_path, made.not_there()), "jetpack6"))
    assert first == "TensorRT 10.3 (JetPack 6.1, 6.2) does not take these graphs"
    where = f"MatMulInteger '{made.NODE}' (step, layer 3, attention)"
    assert rest == [f"{where}: has no MatMulInteger; export with --target portable"]


def test_a_report_without_problems_is_a_line(bundle):
    (line,) = lines(report(Bundle.open(bundle), "jetpack6"))
    assert line.endswith("takes these graphs, as far as the table of versions tells")


def test_the_whole_graph_has_a_line_without_a_node(tmp_path):
    _, line = lines(report(graphs_of(tmp_path, made.blocks()), "jetpack6"))
    assert line.startswith("the graphs have opset 21")
