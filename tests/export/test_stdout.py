"""stdout of any encoding, full, closed or left by its reader: an answer or one message, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mla_export.stdout import StdoutError, guarded_stdout
from mla_runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "tests" / "configs" / "MiniCPM3-4B.json")
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")


def command(*words: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `mla-export WORDS`, with stdout sent where `shell` says."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "graphs", "runtime"))
    line = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "mla_export", *words]
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(line, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"1.00?"),
        ({"PYTHONIOENCODING": "ascii:backslashreplace"}, b"1.00\\xd7"),  # somebody's choice
        ({"PYTHONIOENCODING": "utf-8"}, "1.00×".encode()),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, b"1.00?"),
    ],
    ids=str,
)
def test_any_encoding_will_do(environment: dict[str, str], shown: bytes):
    done = command("inspect", CONFIG, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout


@full
@pytest.mark.parametrize("words", [("inspect", CONFIG), ("inspect", CONFIG, "--json"), ("--help",)])
def test_a_full_disk_behind_stdout_is_one_message(words: tuple[str, ...]):
    done = command(*words, shell=">/dev/full")
    message = b"mla-export: stdout cannot be written (No space left on device); free space, or send it "
    assert (done.returncode, done.stderr) == (3, message + b"elsewhere\n")


def test_a_closed_stdout_is_one_message():
    done = command("inspect", CONFIG, shell=">&-")
    message = b"mla-export: stdout cannot be written (it is closed); free space, or send it elsewhere\n"
    assert (done.returncode, done.stderr) == (3, message)


def print_and_fail(error: Exception) -> None:
    with guarded_stdout():
        print("shown")
        raise error


@full
def test_the_error_of_a_command_goes_before_that_of_stdout(monkeypatch: pytest.MonkeyPatch):
    with Path("/dev/null").open("w") as nowhere, Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(InputError):
            print_and_fail(InputError("no"))
        os.dup2(nowhere.fileno(), stream.fileno())  # what is in the buffer is flushed once more


def test_an_error_of_another_file_is_not_that_of_stdout(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(OSError, match="another file"):
        print_and_fail(OSError("another file"))
    assert not issubclass(StdoutError, OSError)
    assert capsys.readouterr().out == "shown\n"
