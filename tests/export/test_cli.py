"""The command line: what is printed where, exit codes, and what runs without torch."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mla_export
from mla_export import cli
from mla_export.cli import main
from mla_export.commands import tables
from mla_export.commands.bench import Plan
from mla_runtime import errors
from tests.checkpoints import make_checkpoint
from tests.export.blocked import MAKING, blocked
from tests.quick_trace import quick_tracing

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "tiny-mla"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "small", "deepseek_v3")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "small"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), quick_tracing():
        assert main(["export", str(checkpoint), str(out), "--chunk", "32", "--quiet", "--json"]) == 0
    found = json.loads(printed.getvalue())
    assert found["bundle"] == str(out)
    assert found["nbytes"] == sum(f.stat().st_size for f in out.iterdir() if f.name != "bundle.json")
    return out


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[argparse.Namespace], int]) -> None:
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(run=run))


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--quiet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.VerificationError("no"), 1),
        (errors.ConfigError("no"), 2),
        (errors.CheckpointError("no"), 2),
        (errors.BundleError("no"), 2),
        (errors.InputError("no"), 2),
        (errors.ExportError("no"), 3),
        (errors.BackendError("no"), 3),
        (errors.CapacityError("no"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_errors_are_one_message_and_a_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend(monkeypatch, raising(error))
    assert main(["inspect", "x"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"mla-export: {str(error) or 'interrupted'}\n"


def test_a_bug_shows_where_it_happened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pretend(monkeypatch, raising(ZeroDivisionError("oh")))
    assert main(["inspect", "x"]) == 70
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in shown
    assert shown.endswith("this is a bug in mla-export; please report it with the lines above\n")


def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend(monkeypatch, raising(ModuleNotFoundError("no", name="torch.onnx")))
    assert main(["inspect", "x"]) == 3
    assert "torch.onnx is not installed; try: pip install 'mla-export[export]'" in capsys.readouterr().err
    pretend(monkeypatch, raising(ModuleNotFoundError("no", name="mla_export.gone")))
    assert main(["inspect", "x"]) == 70


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["bogus"],
        ["run", "b"],
        ["run", "b", "--prompt", "a", "--ids", "1"],
        ["run", "b", "--ids", "1;2"],
        ["run", "b", "--ids", "1", "--max-tokens", "0"],
        ["run", "b", "--ids", "1", "--temperature", "nan"],
        ["run", "b", "--ids", "1", "--temperature", "-1"],
        ["export", "a", "b", "--absorb", "both"],
        ["export", "a", "b", "--chunk", "0"],
    ],
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: mla-export")


def test_export_says_what_it_wrote(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "bundle"
    with quick_tracing():
        assert main(["export", str(checkpoint), str(out), "--absorb", "expanded", "--dtype", "fp16"]) == 0
    shown = capsys.readouterr().out
    assert "(deepseek_v3, " in shown
    assert "cache a token and layer: key [4, 24] float16, value [4, 12] float16\nno tokenizer: " in shown
    assert main(["export", str(checkpoint), str(out)]) == 3
    assert "--force" in capsys.readouterr().err


def test_run_on_ids(bundle: Path, capsys: pytest.CaptureFixture[str]):
    words = ["run", str(bundle), "--ids", "5,6,7", "--max-tokens", "4"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_ids"] == [5, 6, 7]
    assert found["text"] is None
    assert found["reason"] in ("length", "stop")
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == ",".join(map(str, found["ids"])) + "\n"
    assert "prompt 3 tokens in" in printed.err
    assert "3 steps at" in printed.err or found["reason"] == "stop"
    assert main(["run", str(bundle), "--ids", "5", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().err.startswith("prompt 1 token in")
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_run_samples_by_seed(bundle: Path, capsys: pytest.CaptureFixture[str]):
    words = ["run", str(bundle), "--ids", "5", "--max-tokens", "8", "--temperature", "3", "--quiet"]
    drawn = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--prompt", "a"], 2, "has no tokenizer; give the prompt with --ids"),
        (["--ids", "256"], 2, "outside the vocabulary"),
        (["--ids", "1", "--top-p", "7"], 2, "top_p is 7.0"),
        (["--ids", "1", "--backend", "ort:tpu"], 3, "ort:tpu"),
    ],
)
def test_run_refuses(
    words: list[str], code: int, message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["run", str(bundle), *words]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_bench(bundle: Path, capsys: pytest.CaptureFixture[str]):
    words = ["bench", str(bundle), "--depths", "0,64", "--prompt", "16", "--steps", "3", "--quiet"]
    assert main(words) == 0
    assert "step tok/s" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cache_bytes_per_token"] == 3 * (32 + 8) * 4
    assert [m["depth"] for m in found["measurements"]] == [0, 64]
    assert found["measurements"][1]["cache_bytes"] == 64 * found["cache_bytes_per_token"]
    assert all(m["step_rate"] == pytest.approx(1 / m["step_seconds"]) for m in found["measurements"])


def test_bench_fits_its_defaults_to_the_context(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", str(bundle), "--steps", "2", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["measurements"]
    assert [(m["depth"], m["prompt_tokens"]) for m in found] == [(0, 256), (256, 256)]  # of a context of 512
    assert main(["bench", str(bundle), "--depths", "0,2048", "--quiet"]) == 3
    assert "more than max_context 512" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((4096, None, None, None), ([0, 2048], 512, 32)),
        ((2048, None, None, None), ([0, 1536], 512, 32)),
        ((1024, None, None, None), ([0, 512], 512, 32)),
        ((16, None, None, None), ([0, 8], 8, 6)),
        ((3, None, None, None), ([0], 1, 1)),
        ((1024, [1000], None, None), ([1000], 24, 22)),
        ((1024, [2000], None, None), ([2000], 1, 1)),  # given, so it is refused and not changed
        ((1024, None, 1000, None), ([0, 24], 1000, 32)),
        ((1024, None, 4000, None), ([0], 4000, 32)),
        ((1024, None, None, 1000), ([0, 22], 512, 1000)),
    ],
)
def test_bench_plans_what_fits(given: tuple[Any, ...], wanted: tuple[Any, ...]):
    plan = Plan.fitting(*given)
    assert (plan.depths, plan.prompt, plan.steps) == wanted


def test_steps_of_verify_are_those_of_python():
    parsed = cli.build_parser().parse_args(["verify", "b"]).steps
    assert parsed == inspect.signature(mla_export.verify).parameters["steps"].default == 64
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert f"`--steps` ({parsed}) greedy tokens" in " ".join(text.split())


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("model", ["DeepSeek-V3", "Kimi-K2", "MiniCPM3-4B"])
def test_tables_cut_no_number(
    model: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(ROOT / "tests" / "configs" / f"{model}.json")]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "factored (default)" in shown
    assert max(map(len, shown.splitlines())) <= int(columns)


def test_a_narrow_table_loses_spare_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    header, row = ("run", "max", "cosine", "rank"), ("prompt in pieces", "1.2e-06", "3.4e-14", "1")
    for columns, kept in (("80", header), ("36", ("run", "max", "rank")), ("30", ("run", "max"))):
        monkeypatch.setenv("COLUMNS", columns)
        tables.console().print(tables.table("", header, [row], spare=("cosine", "rank")))
        shown = capsys.readouterr().out.split()
        assert [word for word in shown if word in header] == list(kept)
        assert "1.2e-06" in shown


def test_inspect_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(bundle)]) == 0
    assert "bundle (factored, target portable, float32)" in capsys.readouterr().out
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"]["chunk"] == 32


def test_verify_finds_a_changed_byte(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert main(["verify", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    weights = bytearray((copy / "weights.data").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "weights.data").write_bytes(weights)
    assert main(["verify", str(copy)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_verify_against_the_checkpoint(bundle: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(bundle), "--checkpoint", str(checkpoint), "--steps", "4"]) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "cost"])
def test_inspect_and_cost_work_without_torch(command: str, checkpoint: Path, bundle: Path):
    for path in (checkpoint, checkpoint / "config.json", bundle):
        done = blocked(MAKING | {"onnxruntime"}, command, str(path))
        assert done.returncode == 0, done.stderr


def test_run_and_bench_work_without_torch(bundle: Path):
    done = blocked(MAKING, "run", str(bundle), "--ids", "1,2", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    done = blocked(MAKING, "bench", str(bundle), "--depths", "0", "--prompt", "4", "--steps", "1")
    assert done.returncode == 0, done.stderr


def test_verify_without_a_checkpoint_works_without_torch(bundle: Path):
    done = blocked(MAKING, "verify", str(bundle))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [["run", "--ids", "1", "--max-tokens", "4"], ["verify"], ["inspect", "--json"]]
)
def test_a_reader_that_leaves_is_no_error(bundle: Path, words: list[str]):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mla_export", words[0], str(bundle), *words[1:]]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


def test_demo_tells_and_shows(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["demo", "--checkpoint", str(checkpoint), "--keep", str(tmp_path / "demo")]) == 0
    shown = capfd.readouterr().out
    for command in ("inspect", "export", "verify", "run", "bench"):
        assert f"$ mla-export {command} " in shown
    assert "Latent against expanded cache" in shown
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"absorbed", "expanded"}


def test_demo_ends_where_a_step_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["demo", "--checkpoint", str(tmp_path)]) == 2
    printed = capfd.readouterr()
    assert "has no config.json" in printed.err or "not found" in printed.err
    assert "$ mla-export export" not in printed.out


def test_demo_without_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mla_export.__file__", str(tmp_path / "site-packages" / "mla_export" / "__init__.py"))
    assert main(["demo"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(not (SAMPLE / "config.json").is_file(), reason="an installation without the source tree")
def test_run_writes_text_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(tmp_path / "tiny")
    with quick_tracing():
        assert main(["export", str(SAMPLE), out, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["run", out, "--prompt", "def read_", "--max-tokens", "8", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("def read_")
    words = ["run", out, "--chat", "hi", "--max-tokens", "4", "--json", "--quiet"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["prompt_ids"]) > 1
    assert isinstance(found["text"], str)


def test_progress_goes_to_stderr(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["verify", str(bundle), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert "hashing the bundle" in terminal.getvalue()
