"""Several processes and one store: one builds, the others wait; a kill leaves the old, the new or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mla_runtime.bundle import Bundle
from mla_runtime.engines import store
from mla_runtime.engines.lock import held
from mla_runtime.errors import EngineError
from tests.runtime.engine_builds import CARDS, LIMITS, Builds, library

ROOT = Path(__file__).resolve().parents[2]
# builds, telling when it began, and goes on once the file `go` is there
CHILD = """
import sys, time
from pathlib import Path
from mla_runtime.bundle import Bundle
from mla_runtime.engines import store
from tests.runtime.engine_builds import CARDS, LIMITS, build, library

def slow(bundle, found, cards, limits, folder, progress):
    made = build(bundle, found, cards, limits, folder, seed=int(sys.argv[3]))
    print("building", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return made

def say(sentence):
    print(sentence, flush=True)

again = len(sys.argv) > 4
store.ensure(Bundle.open(sys.argv[1]), library(), CARDS, LIMITS, build=slow, say=say, rebuild=again)
print("done", flush=True)
"""

# builds in processes that end at once at their n-th call that changes the disk, and says what each left
KILLED = """
import os, sys
from pathlib import Path
from mla_runtime.bundle import Bundle
from mla_runtime.engines import store
from mla_runtime.errors import EngineError
from tests.runtime.engine_builds import CARDS, LIMITS, build, content, library

opened = Bundle.open(sys.argv[1])

def seeded(seed):
    return lambda *given: build(*given[:5], seed=seed)

def ends_at(number):
    left = number
    def wrap(call):
        def ending(*given, **more):
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return call(*given, **more)
        return ending
    for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))

code, number = 9, 0
while code == 9:
    number += 1
    store.ensure(opened, library(), CARDS, LIMITS, build=seeded(1), rebuild=True)
    pid = os.fork()
    if pid == 0:
        ends_at(number)
        store.ensure(opened, library(), CARDS, LIMITS, build=seeded(2), rebuild=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        _, where = store.ensure(opened, library(), CARDS, LIMITS, build=None)
    except EngineError:
        print("none", flush=True)
        continue
    files = [(where / f"{phase}.engine").read_bytes() for phase in ("step", "prompt")]
    left = [seed for seed in (1, 2) if files == [content(2 * seed), content(2 * seed + 1)]]
    print({1: "old", 2: "new"}[left[0]] if left else "a mix", flush=True)
"""


def child(bundle: Path, go: Path, seed: int, *more: str) -> subprocess.Popen[str]:
    return script(CHILD, str(bundle), str(go), str(seed), *more)


def script(code: str, *arguments: str) -> subprocess.Popen[str]:
    paths = [str(ROOT), str(ROOT / "graphs"), str(ROOT / "runtime")]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def test_of_two_processes_one_builds_and_the_other_waits_for_it(folder: Path, tmp_path: Path):
    go = tmp_path / "go"
    one = child(folder, go, 1)
    try:
        assert line(one) == "building"
        two = child(folder, go, 2)
        assert f"process {one.pid} builds the same engines; waiting for it" in line(two)
        go.touch()
        assert line(one) == "done"
        assert line(two) == "done", "without building"
        assert (one.wait(60), two.wait(60)) == (0, 0)
    finally:
        ended(one, two)
    builds = Builds()
    store.ensure(Bundle.open(folder), library(), CARDS, LIMITS, build=builds)
    assert builds.count == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("old", [False, True])
def test_a_kill_leaves_the_old_engines_or_none_and_frees_the_lock(folder: Path, tmp_path: Path, old: bool):
    opened, builds = Bundle.open(folder), Builds()
    if old:
        store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    one = child(folder, tmp_path / "never", 7, *(["rebuild"] if old else []))
    try:
        assert line(one) == "building"
        one.send_signal(signal.SIGKILL)
        one.wait(60)
    finally:
        ended(one)
    home = store.engines_folder() / opened.raw["sha256"][:32]
    assert len([path for path in home.iterdir() if ".staging-" in path.name]) == 1
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    assert builds.count == 1, "the old ones serve, or the lock is free"
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds, rebuild=True)
    assert list(home.iterdir()) == [where], "what the killed one left is removed by the next that builds"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_end_at_any_moment_leaves_the_old_the_new_or_none(folder: Path):
    one = script(KILLED, str(folder))
    said = (one.communicate(timeout=300)[0]).split("\n")[:-1]
    assert one.returncode == 0
    assert set(said) == {"old", "new", "none"}, said
    assert said == sorted(said, key=["old", "none", "new"].index), "in this order"
    assert said[-1] == "new", "the last was not ended"
    assert len(said) > 10


def test_who_waits_too_long_is_told_what_for(folder: Path, tmp_path: Path):
    one = child(folder, tmp_path / "never", 1)
    said: list[str] = []
    try:
        assert line(one) == "building"
        with pytest.raises(EngineError, match=rf"process {one.pid} has held this lock .* 0[.]3 s") as late:
            store.ensure(
                Bundle.open(folder), library(), CARDS, LIMITS, build=Builds(), wait=0.3, say=said.append
            )
        (lock,) = (store.engines_folder() / "locks").iterdir()
        assert str(lock) in str(late.value)
        assert len(said) == 1
    finally:
        ended(one)


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path):
    inside, most = 0, 0
    told: list[str] = []

    def work() -> None:
        nonlocal inside, most
        with held(tmp_path / "lock", 60, told.append):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert told


def test_an_error_inside_frees_the_lock(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "lock", 0, pytest.fail):
        raise KeyboardInterrupt
    with held(tmp_path / "lock", 0, pytest.fail):
        pass
