"""`mla-export selftest`: its stages, what one that fails leaves of the others, and what is sent back."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mla_export import cli
from mla_export.commands import selftest as command
from mla_export.selftest import device, run, work
from mla_export.selftest.apart import StageError
from mla_export.selftest.result import SelfTest
from mla_runtime.engines import flavour, loading, store, wanted
from mla_runtime.engines.gpu import Gpu
from mla_runtime.errors import MlaError, VerificationError
from tests.export import fake_card
from tests.runtime.engine_builds import Builds, library
from tests.runtime.handmade import canary, make_bundle

RTX_CARD = {"name": "NVIDIA GeForce RTX 4090", "card": "sm89"}
H200 = {"name": "NVIDIA H200", "card": "sm90"}
AGREED = {"sides": [{"verdict": "reference", "reason": None}, {"verdict": "pass", "reason": None}]}
APART = {"sides": [{"verdict": "reference", "reason": None}, {"verdict": "fail", "reason": None}]}


class Answers:
    """Answers for stages, an error among them if it is one; keeps what was asked."""

    def __init__(self, **given: Any) -> None:
        self.given = {"device": {"gpu": RTX_CARD}, "agreement": AGREED, **given}
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((name, arguments.get("cards", arguments.get("backend"))))
        answer = self.given.get(name, {"given": name})
        if callable(answer):
            answer = answer(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that are there, and backends that run both flavours."""
    packages = {"tensorrt_rtx", "tensorrt", "onnxruntime", "torch", "onnx", "onnx_ir", "onnxscript"}
    monkeypatch.setattr(run, "is_there", lambda name: name in packages)
    monkeypatch.setattr(run.backends, "NAMES", ("ort:cpu", "tensorrt-rtx", "tensorrt"))
    return packages


def done(answers: Answers, *flavours: str, bundles: tuple[str, ...] = ("some/b",)) -> SelfTest:
    saved: list[SelfTest] = []
    found = run.Run(answers, lambda title: None, saved.append, lambda value: value).everything(
        bundles, flavours or ("tensorrt-rtx",), Path("out")
    )
    assert saved[-1] == found
    assert found.finished
    assert not any(one.finished for one in saved[:-1])
    assert [len(one.stages) for one in saved[:-1]] == list(range(1, len(found.stages) + 1))
    return found


def outcomes(found: SelfTest, backend: str = "tensorrt-rtx") -> dict[str, str]:
    return {stage.name: stage.outcome for stage in found.stages if stage.backend == backend}


def message(found: SelfTest, name: str, backend: str = "tensorrt-rtx") -> str:
    return next(s.message for s in found.stages if s.name == name and s.backend == backend)


PASSED = {"build": "passed", "canary": "passed", "agreement": "passed", "speed": "passed"}


def test_on_a_card_everything_is_done(installed: set[str]):
    found = done(Answers())
    assert found.verdict == "passed"
    assert found.on_hardware == ("tensorrt-rtx",)
    assert outcomes(found) == PASSED
    assert outcomes(found, "ort:cpu") == {"canary": "passed", "speed": "passed"}


def test_without_a_gpu_cards_are_built_for_ahead_of_time_and_nothing_is_claimed(installed: set[str]):
    answers = Answers(device={"gpu": None})
    found = done(answers, "tensorrt-rtx", "tensorrt")
    assert found.verdict == "not run on hardware"
    assert outcomes(found) == {
        **dict.fromkeys(PASSED, "skipped"),
        "build ahead of time": "passed",
    }
    assert ("build", run.AHEAD) in answers.asked
    assert outcomes(found, "tensorrt") == dict.fromkeys(PASSED, "skipped"), "it has no cards ahead of time"
    assert "no NVIDIA GPU" in message(found, "agreement")


def test_a_card_that_the_flavour_refuses_is_a_fact_and_no_failure(installed: set[str]):
    def build(arguments: Mapping[str, Any]) -> Any:
        return StageError("SM90 is not supported") if arguments["cards"] == ["this"] else {}

    found = done(Answers(device={"gpu": H200}, build=build))
    assert found.verdict == "not run on hardware"
    assert (outcomes(found)["build"], message(found, "build")) == ("skipped", "SM90 is not supported")
    assert outcomes(found)["build ahead of time"] == "passed"
    assert message(found, "speed") == "there are no engines"


@pytest.mark.parametrize("stage", ["build", "canary", "agreement", "speed"])
def test_a_stage_that_fails_loses_nothing_of_the_others(installed: set[str], stage: str):
    def on_card(arguments: Mapping[str, Any]) -> Any:
        if arguments.get("backend") == "ort:cpu" or arguments.get("cards") == run.AHEAD:
            return {}
        return StageError("its process was ended by SIGSEGV")

    found = done(Answers(**{stage: on_card}))
    assert found.verdict == "failed"
    assert outcomes(found)[stage] == "failed"
    assert message(found, stage) == "its process was ended by SIGSEGV"
    order = list(PASSED)
    before = order[: order.index(stage)]
    assert all(outcomes(found)[name] == "passed" for name in before)
    # engines that compute something else are timed all the same
    after = {"agreement": ["speed"]}.get(stage, [])
    assert [name for name in order[len(before) + 1 :] if outcomes(found)[name] == "passed"] == after
    assert outcomes(found, "ort:cpu") == {"canary": "passed", "speed": "passed"}


def test_numbers_that_differ_fail_and_are_kept(installed: set[str]):
    found = done(Answers(agreement=APART))
    assert found.verdict == "failed"
    stage = next(stage for stage in found.stages if stage.name == "agreement")
    assert stage.result == APART
    assert stage.message == "does not compute what ONNX Runtime does: its numbers are off"


def test_a_bundle_that_cannot_be_read_leaves_the_others(installed: set[str]):
    def read(arguments: Mapping[str, Any]) -> Any:
        return StageError("damaged") if arguments["path"].endswith("a") else {}

    found = done(Answers(bundle=read), bundles=("a", "b"))
    assert found.verdict == "failed"
    assert [stage.bundle for stage in found.stages if stage.name == "agreement"] == ["b"]


def test_without_a_device_s_facts_nothing_is_run_on_it(installed: set[str]):
    found = done(Answers(device=StageError("the driver crashed")))
    assert found.verdict == "failed"
    assert outcomes(found)["build ahead of time"] == "passed"


def test_what_is_not_installed_is_named(installed: set[str]):
    installed -= {"tensorrt_rtx", "onnxruntime"}
    found = done(Answers())
    assert found.verdict == "not run on hardware"
    assert set(outcomes(found).values()) == {"skipped"}
    assert "tensorrt_rtx is not installed; install it with: pip install" in message(
        found, "build ahead of time"
    )
    assert "try: pip install 'mla-export[cpu]'" in message(found, "speed", "ort:cpu")


def test_a_backend_that_is_to_come_is_told(installed: set[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run.backends, "NAMES", ("ort:cpu",))
    found = done(Answers())
    assert outcomes(found) == {**dict.fromkeys(PASSED, "skipped"), "build": "passed"}
    assert "does not run there yet" in message(found, "canary")


def test_without_a_bundle_some_are_made_of_the_sample(installed: set[str]):
    found = done(Answers(), bundles=())
    assert [stage.bundle for stage in found.stages if stage.name == "export"] == list(run.FORMS)
    assert [stage.bundle for stage in found.stages if stage.name == "agreement"] == list(run.FORMS)


def test_a_device_without_torch_is_asked_for_a_bundle(installed: set[str]):
    installed -= {"torch", "onnxscript"}
    found = done(Answers(), bundles=())
    assert {stage.outcome for stage in found.stages if stage.name == "export"} == {"skipped"}
    said = next(stage.message for stage in found.stages if stage.name == "export")
    assert "torch and onnxscript are not installed" in said
    assert "give the bundle: mla-export selftest BUNDLE" in said
    assert found.verdict == "not run on hardware"


@pytest.fixture
def a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    """A Jetson of a kind: ONNX Runtime behind the name of TensorRT, and stages in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card, builds = Gpu("Orin", (8, 7), 8 * 2**30, (12, 6)), Builds()
    for module in (wanted, loading, device):
        monkeypatch.setattr(module, "gpu_at_hand", lambda: card)
    monkeypatch.setattr(flavour.Flavour, "load", lambda self: library("10.3.0", self))
    monkeypatch.setattr(work, "ensure", lambda *given, **more: store.ensure(*given, build=builds, **more))
    monkeypatch.setattr(run, "is_there", lambda name: True)

    def directly(name: str, arguments: Mapping[str, Any], *, quiet: bool) -> dict[str, Any]:
        try:
            return json.loads(json.dumps(work.WORK[name](**arguments)))
        except MlaError as cause:
            raise StageError(str(cause)) from cause

    monkeypatch.setattr(command, "apart", directly)
    return builds


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "my bundles" / "mine", canary=canary([5, 6, 7], [8, 9]))


def selftest(bundle: Path, out: Path, *more: str) -> int:
    return cli.main(["selftest", str(bundle), "--backend", "tensorrt", "--out", str(out), "--quiet", *more])


@pytest.mark.parametrize("drawn", [False, True])
def test_a_device_that_works_gives_two_files_to_send_back(
    a_device: Builds,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    drawn: bool,
):
    fake_card.put_in(monkeypatch)
    monkeypatch.setattr(command, "is_there", lambda name: drawn)
    if not drawn:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert selftest(bundle, tmp_path / "out") == cli.EXIT_OK
    said = capsys.readouterr().out
    assert "passed" in said
    found = json.loads((tmp_path / "out" / "selftest.json").read_text())
    page = (tmp_path / "out" / "selftest.html").read_text()
    assert (found["verdict"], found["on_hardware"], found["finished"]) == ("passed", ["tensorrt"], True)
    assert found["device"]["gpu"]["compute_capability"] == "8.7"
    stages = {(stage["name"], stage["backend"]): stage for stage in found["stages"]}
    assert {stage["outcome"] for stage in found["stages"]} == {"passed"}
    assert stages["build", "tensorrt"]["result"]["gpu"] == "Orin"
    assert a_device.count == 1
    compared = stages["agreement", "tensorrt"]["result"]
    assert len(compared["sides"][1]["steps"]) == 65
    depths = [one["depth"] for one in stages["speed", "tensorrt"]["result"]["measurements"]]
    assert depths == [0]
    for part in ("Orin", "passed", "mine on tensorrt", "step ms", "greedy tokens", "8.7"):
        assert part in page
    assert ("<svg" in page) is drawn
    assert ("matplotlib is not installed" in page) is not drawn
    for text in (json.dumps(found), page):
        assert "my bundles" not in text, "a folder"
        assert str(tmp_path) not in text
        assert platform.node() not in re.split(r"[^\w.-]+", text)


def test_a_device_that_computes_something_else_fails(
    a_device: Builds, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_card.put_in(monkeypatch, off=5e-4)  # within the canary's tolerance, and beyond the gate
    out = tmp_path / "named.json"
    assert selftest(bundle, out) == cli.EXIT_UNVERIFIED
    found = json.loads(out.read_text())
    assert [s["name"] for s in found["stages"] if s["outcome"] == "failed"] == ["agreement"]
    assert "FAILED" in out.with_suffix(".html").read_text()


def test_engines_that_do_not_load_are_a_failure_on_a_device(
    a_device: Builds, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = "/mnt/some body/cache/mla-export/engines/x"
    fake_card.put_in(monkeypatch, error=VerificationError(f"{where}: engines that fail the canary"))
    assert selftest(bundle, tmp_path / "out") == cli.EXIT_UNVERIFIED
    found = json.loads((tmp_path / "out" / "selftest.json").read_text())
    (failed,) = (stage for stage in found["stages"] if stage["outcome"] == "failed")
    assert failed["name"] == "canary"
    assert "engines that fail the canary" in failed["message"]


def test_nothing_on_hardware_has_a_code_of_its_own_and_files_are_kept(
    a_device: Builds, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    fake_card.put_in(monkeypatch)
    monkeypatch.setattr(device, "gpu_at_hand", lambda: None)
    out = tmp_path / "out"
    assert selftest(bundle, out, "--json") == cli.EXIT_NOT_ON_HARDWARE
    told = capsys.readouterr()
    assert json.loads(told.out) == json.loads((out / "selftest.json").read_text())
    assert "No engine ran on a card" in (out / "selftest.html").read_text()
    before = (out / "selftest.json").read_bytes()
    assert selftest(bundle, out) == cli.EXIT_CANNOT
    assert "--force" in capsys.readouterr().err
    assert (out / "selftest.json").read_bytes() == before
    assert selftest(bundle, out, "--force") == cli.EXIT_NOT_ON_HARDWARE


def test_depths_that_do_not_fit_are_left_out(bundle: Path):
    found = work.speed(str(bundle), "ort:cpu", [0, 100, 10**6])
    assert [one["depth"] for one in found["measurements"]] == [0, 100]


def test_a_verdict_needs_numbers_that_agreed(installed: set[str]):
    found = done(Answers())
    without = tuple(stage for stage in found.stages if stage.name != "agreement")
    assert replace(found, stages=without).verdict == "not run on hardware"
