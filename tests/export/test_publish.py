"""A kill at any point leaves the old bundle, the new one, or none; never a mix."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_export import publish
from mla_runtime.errors import ExportError

# Publishes `new` over `out` and kills itself, as SIGKILL does, at the n-th call into the operating system
# that changes or flushes something.
SCRIPT = """
import os, sys, signal
from pathlib import Path
from mla_export import publish
out, deadly = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("mkdir", "rename", "unlink", "rmdir", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
publish.check_target(out, force=True)
with publish.staged(out, force=True) as staging:
    (staging / "weights.data").write_bytes(b"new")
    (staging / "bundle.json").write_text("new")
print("done", calls)
"""


def old_bundle(out: Path) -> None:
    out.mkdir()
    (out / "weights.data").write_bytes(b"old")
    (out / "bundle.json").write_text("old")


def content(out: Path) -> set[str] | None:
    return {path.read_text() for path in out.iterdir()} if out.exists() else None


@pytest.mark.parametrize("before", ["nothing", "a bundle"])
def test_kill_at_every_call(tmp_path, before):
    finished = False
    seen = set()
    for deadly in range(1, 40):
        folder = tmp_path / str(deadly)
        folder.mkdir()
        out = folder / "bundle"
        if before == "a bundle":
            old_bundle(out)
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(out), str(deadly)], capture_output=True, text=True
        )
        state = content(out)
        assert state in ({"old"}, {"new"}, None), (deadly, state)
        seen.add(None if state is None else next(iter(state)))
        # Whatever the kill left beside it, the next one publishes and cleans up.
        publish.check_target(out, force=True)
        with publish.staged(out, force=True) as staging:
            (staging / "bundle.json").write_text("next")
        assert content(out) == {"next"}
        assert [path.name for path in folder.iterdir()] == ["bundle"]
        if run.returncode == 0:
            finished = True
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
    assert finished
    assert "new" in seen
    assert ("old" if before == "a bundle" else None) in seen


def test_old_bundle_comes_back_when_the_kill_came_between_the_renames(tmp_path):
    out = tmp_path / "bundle"
    old_bundle(tmp_path / ".bundle.replaced-0a1b2c3d")
    with pytest.raises(ExportError, match="is there already; give --force"):
        publish.check_target(out, force=False)
    assert content(out) == {"old"}


def publish_new(out: Path, *, force: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
    with publish.staged(out, force=force) as staging:
        (staging / "bundle.json").write_text("new")
        meanwhile()


def test_interrupt_between_the_renames_puts_the_old_bundle_back(tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    old_bundle(out)
    renames = 0
    real = Path.rename

    def rename(self, target):
        nonlocal renames
        renames += 1
        if renames == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        publish_new(out, force=True)
    assert content(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_two_exports_at_once_leave_each_other_alone(tmp_path):
    out = tmp_path / "bundle"
    with publish.staged(out, force=True) as first, publish.staged(out, force=True) as second:
        assert first != second
        publish.check_target(out, force=True)
        (first / "bundle.json").write_text("first")
        (second / "bundle.json").write_text("second")
    assert content(out) == {"first"}  # the outer one ended last
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_folder_that_came_up_meanwhile_is_not_replaced(tmp_path):
    mine, old = tmp_path / "mine", tmp_path / "old"

    def make_notes() -> None:
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")

    with pytest.raises(ExportError, match="is there and is not a bundle"):
        publish_new(mine, force=True, meanwhile=make_notes)
    assert content(mine) == {"mine"}
    with pytest.raises(ExportError, match="give --force"):
        publish_new(old, force=False, meanwhile=lambda: old_bundle(old))
    assert content(old) == {"old"}


def test_published_folder_has_ordinary_permissions(tmp_path):
    with publish.staged(tmp_path / "bundle", force=False) as staging:
        (staging / "bundle.json").write_text("new")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_error_inside_leaves_nothing(tmp_path):
    out = tmp_path / "bundle"
    old_bundle(out)

    def fail() -> None:
        with publish.staged(out, force=True) as staging:
            (staging / "weights.data").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_no_space_left_while_writing_is_one_clear_error(tmp_path):
    out = tmp_path / "bundle"

    def fail() -> None:
        with publish.staged(out, force=True):
            raise OSError(28, "No space left on device")

    with pytest.raises(
        ExportError, match=r"bundle: writing failed \(.*No space left on device\); nothing was changed"
    ):
        fail()
    assert list(tmp_path.iterdir()) == []


def free(monkeypatch, nbytes: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, nbytes))


def test_too_little_space_is_said_before(tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    old_bundle(out)
    free(monkeypatch, 3 * 10**9)

    def publish_large(needed: int) -> None:
        with publish.staged(out, force=True, needed=needed) as staging:
            (staging / "bundle.json").write_text("new")

    with pytest.raises(ExportError, match=r"bundle: 5\.00 GB are needed and 3\.00 GB are free; free some"):
        publish_large(5 * 10**9)
    assert content(out) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    publish_large(3 * 10**9)
    assert content(out) == {"new"}


def test_target_that_is_not_a_bundle_is_never_replaced(tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("words")
    for force in (False, True):
        with pytest.raises(ExportError, match="is there and is not a bundle, so it is not replaced"):
            publish.check_target(precious, force=force)


def test_bundle_is_replaced_only_when_asked(tmp_path):
    old_bundle(tmp_path / "bundle")
    with pytest.raises(ExportError, match="is there already; give --force to replace it"):
        publish.check_target(tmp_path / "bundle", force=False)
    publish.check_target(tmp_path / "bundle", force=True)


def test_link_is_not_replaced(tmp_path):
    old_bundle(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(ExportError, match="is not a bundle"):
        publish.check_target(tmp_path / "link", force=True)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="its folder cannot be made"):
        publish.check_target(tmp_path / "file" / "bundle", force=False)


def kept(staging: Path) -> frozenset[str]:
    return frozenset(("half",)) if (staging / "half").exists() else frozenset()


def interrupt(out: Path, name: str) -> None:
    with publish.staged(out, force=True, keep=kept) as staging:
        (staging / name).write_text("half")
        (staging / "graph").write_text("stale")
        raise KeyboardInterrupt


def test_interrupted_work_is_named_and_gone_on_with(tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(
        KeyboardInterrupt, match=r"what was finished is in .*/\.bundle\.staging-.* goes on from"
    ):
        interrupt(out, "half")
    (left,) = tmp_path.iterdir()
    with publish.staged(out, force=True, keep=kept) as staging:
        assert staging == left
        assert [path.name for path in staging.iterdir()] == ["half"]
        with publish.staged(out, force=True, keep=kept) as other:  # the one at work is left alone
            assert other != staging
            (other / "bundle.json").write_text("other")
        assert (staging / "half").exists()
        (staging / "half").rename(staging / "bundle.json")
    assert content(out) == {"half"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_interrupted_work_that_nobody_can_use_is_removed(tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        interrupt(out, "nothing")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupt(out, "half")
    (left,) = tmp_path.iterdir()
    with publish.staged(out, force=True) as staging:
        assert staging != left
        assert not left.exists()
        (staging / "bundle.json").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_there_needs_no_space_and_is_kept_where_the_rest_has_none(tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out, "half")
    (left,) = tmp_path.iterdir()
    os.truncate(left / "half", 2 * 10**9)  # a hole: nothing is written

    def go_on(needed: int) -> None:
        with publish.staged(out, force=False, needed=needed, keep=kept) as staging:
            assert staging == left
            (staging / "half").rename(staging / "bundle.json")

    free(monkeypatch, 3 * 10**9)
    with pytest.raises(ExportError) as short:
        go_on(5 * 10**9 + 1)
    assert f"5.00 GB are needed, 2.00 GB of them are there ({left}), and 3.00 GB are free" in str(short.value)
    assert (left / "half").stat().st_size == 2 * 10**9
    go_on(5 * 10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
