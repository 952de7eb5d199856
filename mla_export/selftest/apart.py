"""A stage in a process of its own: native code that crashes or hangs is a stage that failed, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mla_runtime.errors import MlaError

COMMAND = (sys.executable, "-m", "mla_export.selftest.apart")
LIMIT_SECONDS = 2 * 3600.0
LAST_LINES = 25


class StageError(Exception):
    """A stage failed; the message says how."""


def apart(
    work: str,
    arguments: Mapping[str, Any],
    *,
    quiet: bool = False,
    command: Sequence[str] = COMMAND,
    limit: float = LIMIT_SECONDS,
) -> dict[str, Any]:
    """Do `work` (a name of `WORK`) and give its result; what it says on the way goes to stderr.

    Raises `StageError` with the message of its error, or with how the process ended and its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="mla-export-selftest-") as folder:
        answer = Path(folder) / "answer.json"
        code, said = _run([*command, work, json.dumps(arguments), str(answer)], quiet, limit)
        found = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    if "result" in found:
        result: dict[str, Any] = found["result"]
        return result
    if "error" in found:
        raise StageError(found["error"])
    last = "\n".join(said) or "nothing"
    raise StageError(f"its process {_ending(code, limit)}; it said last:\n{last}")


def _run(command: Sequence[str], quiet: bool, limit: float) -> tuple[int | None, Sequence[str]]:
    """Give the exit code, None for one that was ended at its limit, and the last lines that it said."""
    # what can be imported here can be there
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said: deque[str] = deque(maxlen=LAST_LINES)
    late = threading.Event()
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            for line in process.stdout or ():
                said.append(line.rstrip())
                if not quiet:
                    sys.stderr.write(f"  {line}")
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    return (None if late.is_set() else code), said


def _ending(code: int | None, limit: float) -> str:
    if code is None:
        return f"took more than {limit:g} s and was ended"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with {code:#x}" if code > 255 else f"ended with {code}"


def _main(work: str, arguments: str, answer: str) -> None:
    from mla_export.progress import reporting
    from mla_export.selftest.work import WORK

    try:
        with reporting():
            found: dict[str, Any] = {"result": WORK[work](**json.loads(arguments))}
    except (MlaError, ModuleNotFoundError) as error:
        found = {"error": str(error)}
    except Exception:
        found = {"error": traceback.format_exc()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
