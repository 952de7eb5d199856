"""Stages in processes of their own, and what is left of paths in what they say."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from mla_export.selftest.apart import StageError, apart
from mla_export.selftest.private import known_places, without_places
from tests.runtime.handmade import make_bundle


def script(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_stage_gives_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = apart("bundle", {"path": str(make_bundle(tmp_path / "b"))})
    assert found["name"] == "handmade"


def test_an_error_is_its_message_and_a_bug_its_traceback(tmp_path: Path):
    with pytest.raises(StageError, match="not a folder; give the folder of a bundle"):
        apart("bundle", {"path": str(tmp_path / "nothing")}, quiet=True)
    with pytest.raises(StageError, match=r"Traceback(.|\n)*unexpected keyword argument"):
        apart("bundle", {"unknown": 1}, quiet=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_a_crash_is_a_failure_with_the_last_words(capsys: pytest.CaptureFixture[str]):
    code = "import os, sys; print('[TRT] an illegal memory access', file=sys.stderr, flush=True); "
    with pytest.raises(StageError, match=r"was ended by SIGSEGV(.|\n)*an illegal memory access"):
        apart("canary", {}, command=script(code + "os.kill(os.getpid(), 11)"))
    assert "illegal memory access" in capsys.readouterr().err
    with pytest.raises(StageError, match=r"ended with 3; it said last:\nnothing"):
        apart("canary", {}, command=script("raise SystemExit(3)"), quiet=True)


def test_what_hangs_is_ended():
    with pytest.raises(StageError, match=r"took more than 0[.]5 s and was ended"):
        apart("canary", {}, command=script("import time; time.sleep(60)"), quiet=True, limit=0.5)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/mnt/bob/models/b: not a folder", "b: not a folder"),
        ("'/mnt/bob/b/engine.json' is missing", "'engine.json' is missing"),
        ("see (/opt/x/y.so), then /usr/lib/z.so:12", "see (y.so), then z.so:12"),
        (r"C:\Users\bob\b\step.onnx: 3 bytes", "step.onnx: 3 bytes"),
        (r"\\server\share\file and ~/x/y", "file and y"),
        ("65 / 65 tokens/s, GNU/Linux, n/a", "65 / 65 tokens/s, GNU/Linux, n/a"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("/a place/with spaces/b/file", "file"),
        ("out/b on ort:cpu", "out/b on ort:cpu"),
    ],
)
def test_of_a_path_its_last_part_is_left(said: str, left: str):
    assert without_places({"a": [said, 1, None]}, [Path("/a place/with spaces")]) == {"a": [left, 1, None]}


def test_the_folders_of_this_machine_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "jane doe"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    said = json.dumps({"message": f"{home}/b c/x: no; {home}"})
    assert "jane" not in json.dumps(without_places(json.loads(said), known_places()))
