"""`mla-export report`: what it measures, what it draws, and what it refuses before anything long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mla_export import report
from mla_export.cli import main
from mla_runtime.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.export.agreements import agreement, everything
from tests.export.benchmarks import bench_json, inspect_json
from tests.export.blocked import MAKING, blocked
from tests.export.references import assert_self_contained
from tests.export.test_page import words
from tests.quick_trace import quick_tracing


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("report")
    model = make_checkpoint(root / "model", "youtu")
    made = (root / "float", root / "int8")
    with quick_tracing():
        for out, more in zip(made, ([], ["--cache", "int8"]), strict=True):
            assert main(["export", str(model), str(out), "--chunk", "32", "--quiet", *more]) == 0
    return made


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, str]:
    values = {"good": agreement().to_json(), "bad": everything().to_json()}
    values |= {"bench": bench_json(), "model": inspect_json(), "other": {"a": 1}}
    for name, value in values.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return {name: str(tmp_path / f"{name}.json") for name in values}


def test_saved_results_become_a_page(
    saved: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report.html"
    assert main(["report", "--from", saved["good"], saved["bench"], saved["model"], "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: passed; ")
    assert_self_contained(out.read_text(encoding="utf-8"))
    assert "The one side is within what may differ" in words(out.read_text(encoding="utf-8"))


def test_a_failed_comparison_is_written_and_ends_with_1(
    saved: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report.html"
    assert main(["report", "--from", saved["good"], saved["bad"], "--out", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {"page": str(out), "nbytes": out.stat().st_size, "passed": False, "verdict": "fail"}
    assert_self_contained(out.read_text(encoding="utf-8"))  # two comparisons on one page


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--out r.html", 2, "give bundles to measure, or with --from results to draw: one of the two"),
        ("b --from {good} --out r.html", 2, "one of the two"),
        (
            "--from {good} --steps 5 --out r.html",
            2,
            "--from draws what was measured before, and --steps is for",
        ),
        ("--from {other} --out r.html", 2, "other.json: is no result of compare, bench or inspect"),
        ("--from gone.json --out r.html", 2, "gone.json: cannot be read"),
        ("--from {good} --out gone/r.html", 3, "there is no folder gone"),
        ("nothing --out r.html", 2, "nothing"),
    ],
)
def test_what_cannot_be_taken_is_one_message(
    line: str,
    code: int,
    message: str,
    saved: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(word.format(**saved) for word in line.split())]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_a_page_that_is_there_is_kept_and_told_before_anything_is_measured(
    saved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured before the file was looked at")

    monkeypatch.setattr(report, "gather", never)
    out = tmp_path / "report.html"
    out.write_text("mine")
    assert main(["report", "some-bundle", "--out", str(out)]) == 3
    assert "is there already; give --force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["report", "--from", saved["good"], "--out", str(out), "--force"]) == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_without_matplotlib_that_is_said_first(tmp_path: Path):
    out = str(tmp_path / "r.html")
    done = blocked({"matplotlib"}, "report", "no-such-bundle", "--out", out)
    message = "mla-export: matplotlib is not installed; try: pip install 'mla-export[report]'\n"
    assert (done.returncode, done.stderr) == (3, message)
    done = blocked({"matplotlib", "torch"}, "report", "b", "--checkpoint", "c", "--out", out)
    assert "matplotlib and torch are not installed" in done.stderr
    assert "mla-export[export,report]" in done.stderr


def test_drawing_takes_neither_torch_nor_onnx_runtime(saved: dict[str, str], tmp_path: Path):
    out = tmp_path / "r.html"
    done = blocked(
        MAKING | {"onnxruntime"}, "report", "--from", saved["good"], saved["bench"], "--out", str(out)
    )
    assert done.returncode == 0, done.stderr
    assert out.is_file()


def test_bundles_are_measured_and_compared(bundles: tuple[Path, Path], tmp_path: Path):
    out = tmp_path / "r.html"
    line = [
        "report",
        *map(str, bundles),
        "--backends",
        "ort:cpu,ort:cuda",
        "--steps",
        "4",
        "--depths",
        "0,64",
    ]
    assert main([*line, "--out", str(out), "--quiet"]) == 0
    text = out.read_text(encoding="utf-8")
    assert_self_contained(text)
    shown = words(text)
    assert "int8 on ort:cpu" in shown
    assert "int8 on ort:cuda was not measured: no backend 'ort:cuda'" in shown
    assert "absent" in shown
    for chart in ("c1-steps", "c1-latent", "step-speed", "memory", "cache"):
        assert f'id="{chart}-title"' in text


def test_what_has_nothing_to_be_held_against_is_measured_all_the_same(bundles: tuple[Path, Path]):
    found = report.gather([bundles[1]], depths=[0])
    assert found.comparisons == ()
    assert found.comparison_missing.startswith("Not compared: none of these bundles is in fp32")
    ((speed,),) = (one.measurements for one in found.benchmarks)
    assert (speed.depth, found.verdict) == (0, "")
    assert [one.family for one in found.models] == ["youtu"]


def test_depths_are_those_that_fit_unless_they_are_given(bundles: tuple[Path, Path]):
    bundle = Bundle.open(bundles[0])
    assert bundle.model.max_context < report.PROMPT + report.DEPTHS[1]
    one = report._bench(bundle, "ort:cpu", None)
    assert [speed.depth for speed in one.measurements] == [0]
    refused = report._bench(bundle, "ort:cpu", [10**6])
    assert "more than max_context" in refused.reason
    assert not refused.reason.startswith("mla-export")
