"""`mla-export build`, as it is typed."""

from __future__ import annotations

import json

import pytest

from mla_export import cli
from mla_export.export import export
from mla_runtime.engines.flavour import RTX
from tests.checkpoints import make_checkpoint
from tests.engines.bindings import LIBRARY
from tests.quick_trace import quick_tracing

FOR = ["--for", "sm86,sm89", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return make_checkpoint(folder / "checkpoint", "youtu", num_hidden_layers=1)


@pytest.fixture(scope="module")
def bundle(folder, checkpoint) -> str:
    with quick_tracing():
        return str(export(checkpoint, folder / "bundle", dtype="fp16", max_context=64, chunk=32))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "cache"


def mla_export(*arguments: str) -> int:
    return cli.main(list(arguments))


def failed(capsys, *arguments: str) -> tuple[int, str]:
    code = mla_export(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.removeprefix("mla-export: ").strip()


def test_engines_are_built_once_into_the_cache(bundle, cache, capsys):
    assert mla_export("build", bundle, *FOR, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["folder"].startswith(str(cache))
    assert (first["flavour"], first["version"], first["cards"]) == (
        RTX.name,
        LIBRARY.version,
        ["sm86", "sm89"],
    )
    assert first["limits"] == {"batch": 1, "context": 64, "chunk": 32}
    assert first["canary"] == "not run"
    assert mla_export("build", bundle, *FOR, "--json") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert mla_export("build", bundle, "--for", "SM89", "--quiet") == 0
    assert "there already, built in" in capsys.readouterr().out
    assert mla_export("build", bundle, *FOR, "--json", "--rebuild") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["folder"] == first["folder"]


def test_engines_are_shown_with_their_shapes(bundle, tmp_path, capsys):
    out = tmp_path / "engines"
    assert (
        mla_export("build", bundle, *FOR, "--out", str(out), "--max-batch", "3", "--max-context", "48") == 0
    )
    shown = capsys.readouterr().out
    assert f"{bundle} on tensorrt-rtx {LIBRARY.version} for sm86, sm89: 2 engines" in shown
    rows = [line.split() for line in shown.splitlines() if ".engine" in line]
    assert [row[:2] for row in rows] == [["step.engine", "step"], ["prompt.engine", "prompt"]]
    assert "1 … 3" in shown
    assert "1 … 48" in shown
    assert sorted(path.name for path in out.iterdir()) == ["engine.json", "prompt.engine", "step.engine"]


def test_a_folder_is_not_overwritten_unasked(bundle, tmp_path, capsys):
    out = tmp_path / "engines"
    assert mla_export("build", bundle, *FOR, "--out", str(out)) == 0
    before = (out / "engine.json").read_bytes()
    capsys.readouterr()
    code, said = failed(capsys, "build", bundle, *FOR, "--out", str(out))
    assert (code, said) == (
        3,
        f"{out}: engines are there; name another folder, or replace them with --rebuild",
    )
    assert (out / "engine.json").read_bytes() == before
    assert mla_export("build", bundle, *FOR, "--out", str(out), "--rebuild") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "engines"}


def test_engines_are_not_put_where_they_do_not_belong(bundle, tmp_path, capsys):
    code, said = failed(capsys, "build", bundle, *FOR, "--out", f"{bundle}/engines")
    assert code == 3
    assert "lies in the bundle" in said
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    code, said = failed(capsys, "build", bundle, *FOR, "--out", str(other), "--rebuild")
    assert (code, said) == (3, f"{other}: is there, and no engines of this toolkit; name another folder")
    code, said = failed(capsys, "build", bundle, *FOR, "--out", str(tmp_path / "no" / "folder"))
    assert code == 3
    assert "make it first" in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--for", "sm90"], 2, "'sm90' is none of this, sm80, sm86, sm89, sm120, sm121, or a JetPack"),
        (["--for", "sm87"], 2, "a Jetson builds for itself: jetpack6 says whether it will"),
        (["--for", ""], 2, "'' is none of this"),
        (["--for", "this,sm86"], 3, "this goes with no other card"),
        (["--for", "sm86,jetpack6"], 2, "a JetPack goes with nothing else"),
        (["--for", "jetpack6", "--out", "x"], 2, "--for jetpack6 builds nothing: leave --out"),
        (["--for", "sm86", "--backend", "tensorrt"], 3, "tensorrt"),
        (["--for", "sm86", "--chunk", "64"], 3, "the bundle's prompt graph is for at most 32 tokens at once"),
        (["--for", "sm86", "--max-context", "65"], 3, "max_context 65 passes the bundle's 64"),
    ],
)
def test_what_cannot_be_built_is_said_at_once(bundle, arguments, code, said, capsys):
    found, message = failed(capsys, "build", bundle, *arguments)
    assert found == code
    assert said in message


def test_the_card_at_hand_has_to_be_there(bundle, monkeypatch, capsys):
    monkeypatch.setattr("mla_runtime.engines.wanted.gpu_at_hand", lambda: None)
    code, said = failed(capsys, "build", bundle, "--backend", "tensorrt-rtx")
    assert code == 3
    assert "no NVIDIA GPU is to be seen here" in said
    assert "--for sm80,sm86,sm89" in said


def test_a_jetpack_is_asked_of_the_table(bundle, folder, checkpoint, capsys):
    assert mla_export("build", bundle, "--for", "jetpack6") == 0
    assert "TensorRT 10.3 (JetPack 6.1, 6.2) takes these graphs" in capsys.readouterr().out
    assert mla_export("build", bundle, "--for", "jetpack6", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "builds"
    with quick_tracing():
        other = export(checkpoint, folder / "cpu", target="ort-cpu", weights="int4", max_context=64)
    assert mla_export("build", str(other), "--for", "jetpack6") == 1
    shown = capsys.readouterr().out
    assert shown == "its graphs are for ort-cpu; TensorRT builds those of --target portable alone\n"
