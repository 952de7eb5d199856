"""A killed export is gone on with: finished weights are not made again, and the bytes are a clean run's."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from mla_export.export import export
from mla_export.journal import JOURNAL
from mla_export.params import Recipes
from mla_export.quantiser import WeightErrors
from mla_runtime.errors import ExportError
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing

OPTIONS = {"target": "ort-cpu", "weights": "int4", "chunk": 16}
ROOT = Path(__file__).parents[2]

# Exports in a process for each way to die, and kills it there, as SIGKILL does.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import torch
from mla_export import canary, journal
from mla_export.export import export
from mla_export.params import Recipes
from mla_runtime.errors import ExportError
from tests.quick_trace import quick_tracing

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def at_first_parameter():
    Recipes.__call__ = lambda self, name: die()

def within_experts():
    real = Recipes.__call__
    def made(self, name):
        pieces = real(self, name)
        yield next(pieces)
        if name == "layers.1.moe.experts.gate_up":
            die()
        yield from pieces
    Recipes.__call__ = made

def before_the_journal_knows():
    journal.Journal.add = lambda *args: die()

def within_a_line_of_the_journal():
    real = journal.Journal.add
    def add(self, parameter, end, digest, errors):
        real(self, parameter, end, digest, errors)
        if parameter == "layers.0.attention.o_proj.weight":
            path = self.staging / journal.JOURNAL
            os.truncate(path, path.stat().st_size - 20)
            die()
    journal.Journal.add = add

def in_the_canary():
    canary.record = die

def when_all_is_done():
    os.rename = os.replace = Path.rename = die

source, out, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
torch.set_num_threads(1)
for way in sys.argv[4:]:
    child = os.fork()
    if child == 0:
        globals()[way]()
        with quick_tracing():
            export(source, out / way / "bundle", **options)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, way
"""
WAYS = (
    "at_first_parameter",
    "before_the_journal_knows",
    "within_a_line_of_the_journal",
    "within_experts",
    "in_the_canary",
    "when_all_is_done",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The killed exports run with one thread too; another number is another export."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3", num_hidden_layers=2)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Asked:
    """What an export asks its recipes for."""

    def __init__(self, monkeypatch) -> None:
        self.names: list[str] = []
        real = Recipes.__call__

        def call(recipes, name):
            self.names.append(name)
            return real(recipes, name)

        monkeypatch.setattr(Recipes, "__call__", call)


@pytest.fixture(scope="module")
def clean(checkpoint, tmp_path_factory) -> tuple[list[str], dict[str, str]]:
    """Parameters in their order, and the files of an export that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch, quick_tracing():
        asked = Asked(patch)
        out = export(checkpoint, tmp_path_factory.mktemp("clean") / "bundle", **OPTIONS)
    return asked.names, digests(out)


@pytest.fixture(scope="module")
def killed(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(folder), json.dumps(OPTIONS), *WAYS]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def resume(checkpoint: Path, out: Path, monkeypatch, **options) -> list[str]:
    asked = Asked(monkeypatch)
    with quick_tracing():
        export(checkpoint, out, **(OPTIONS | options))
    return asked.names


@pytest.mark.parametrize("way", WAYS)
def test_killed_export(checkpoint, clean, killed, way, monkeypatch):
    names, files = clean
    done = {
        "at_first_parameter": 0,
        "before_the_journal_knows": 0,
        "within_a_line_of_the_journal": names.index("layers.0.attention.o_proj.weight"),
        "within_experts": names.index("layers.1.moe.experts.gate_up"),
        "in_the_canary": len(names),
        "when_all_is_done": 0,  # the journal is gone by then, and the folder a finished bundle's
    }[way]
    assert resume(checkpoint, killed / way / "bundle", monkeypatch) == names[done:]
    assert digests(killed / way / "bundle") == files
    assert [path.name for path in (killed / way).iterdir()] == ["bundle"]


def interrupted(checkpoint: Path, out: Path) -> Path:
    """An export that Ctrl-C ended in the last layer's experts; gives the staging folder."""
    real = Recipes.__call__

    def call(recipes, name):
        if name == "layers.1.moe.experts.down":
            raise KeyboardInterrupt
        return real(recipes, name)

    with pytest.MonkeyPatch.context() as patch, quick_tracing():
        patch.setattr(Recipes, "__call__", call)
        with pytest.raises(KeyboardInterrupt, match="goes on from there"):
            export(checkpoint, out, **OPTIONS)
    (staging,) = out.parent.iterdir()
    return staging


def test_interrupted_export(checkpoint, clean, tmp_path, monkeypatch):
    names, files = clean
    interrupted(checkpoint, tmp_path / "bundle")
    asked = resume(checkpoint, tmp_path / "bundle", monkeypatch)
    assert asked == names[names.index("layers.1.moe.experts.down") :]
    assert digests(tmp_path / "bundle") == files


def test_errors_of_weights_that_were_finished_before_are_told_too(checkpoint, tmp_path, monkeypatch):
    told: list[WeightErrors] = []
    (tmp_path / "stopped").mkdir()
    interrupted(checkpoint, tmp_path / "stopped" / "bundle")
    resume(checkpoint, tmp_path / "stopped" / "bundle", monkeypatch, told=told.append)
    resume(checkpoint, tmp_path / "whole", monkeypatch, told=told.append)
    assert told[0].by_parameter == told[1].by_parameter
    assert told[0].overall == told[1].overall > 0


def test_a_full_disk_does_not_take_what_was_finished(checkpoint, clean, tmp_path, monkeypatch):
    names, files = clean
    out = tmp_path / "bundle"
    staging = interrupted(checkpoint, out)
    usage = namedtuple("usage", "total used free")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 0))
        with pytest.raises(ExportError, match=re.escape(f"of them are there ({staging}), and 0.00 GB are")):
            export(checkpoint, out, **OPTIONS)
    assert resume(checkpoint, out, monkeypatch) == names[names.index("layers.1.moe.experts.down") :]
    assert digests(out) == files


@pytest.mark.parametrize("damage", ["a byte", "the end", "a hash"])
def test_what_is_damaged_is_made_again(checkpoint, clean, tmp_path, monkeypatch, damage):
    names, files = clean
    staging = interrupted(checkpoint, tmp_path / "bundle")
    lines = [json.loads(line) for line in (staging / JOURNAL).read_text().splitlines()]
    number = 7
    content = bytearray((staging / "weights.data").read_bytes())
    at = lines[number]["end"] + 5  # lines[0] is the identity: within parameter 7, counted from 0
    if damage == "a byte":
        content[at] ^= 1
    elif damage == "the end":
        del content[at:]
    else:
        lines[number + 1]["sha256"] = "0" * 64
        (staging / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (staging / "weights.data").write_bytes(content)
    assert resume(checkpoint, tmp_path / "bundle", monkeypatch) == names[number:]
    assert digests(tmp_path / "bundle") == files


@pytest.mark.parametrize("change", ["options", "checkpoint", "threads"])
def test_another_export_starts_anew(checkpoint, clean, tmp_path, monkeypatch, change):
    names, _ = clean
    source = shutil.copytree(checkpoint, tmp_path / "model")
    out = tmp_path / "out"
    out.mkdir()
    interrupted(source, out / "bundle")
    options = {"group": 128} if change == "options" else {}
    if change == "checkpoint":
        (source / "model.safetensors").touch()
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert resume(source, out / "bundle", monkeypatch, **options) == names
    assert [path.name for path in out.iterdir()] == ["bundle"]


def test_a_link_is_not_written_through(checkpoint, clean, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    staging = interrupted(checkpoint, out / "bundle")
    (staging / "weights.data").rename(tmp_path / "precious")
    (staging / "weights.data").symlink_to(tmp_path / "precious")
    before = (tmp_path / "precious").read_bytes()
    assert resume(checkpoint, out / "bundle", monkeypatch) == clean[0]
    assert (tmp_path / "precious").read_bytes() == before
