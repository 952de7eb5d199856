"""One file, written at once or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mla_export.one_file import check_file, write_file
from mla_runtime.errors import ExportError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_the_permissions_of_any_other(tmp_path: Path):
    write_file(tmp_path / "a.html", "ä\n", force=False)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.html").read_bytes() == "ä\n".encode()
    assert (tmp_path / "a.html").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert names(tmp_path) == ["a.html", "b"]


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path):
    out = tmp_path / "a.html"
    out.write_text("old")
    with pytest.raises(ExportError, match=r"a\.html is there already; give --force"):
        write_file(out, "new", force=False)
    assert out.read_text() == "old"
    write_file(out, "new", force=True)
    assert out.read_text() == "new"


def test_what_is_no_file_is_never_replaced(tmp_path: Path):
    with pytest.raises(ExportError, match="is there and is no file"):
        check_file(tmp_path, force=True)
    with pytest.raises(ExportError, match="there is no folder"):
        check_file(tmp_path / "gone" / "a.html", force=True)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "a.html").symlink_to("kept")
    with pytest.raises(ExportError, match="--force"):
        check_file(tmp_path / "a.html", force=False)
    write_file(tmp_path / "a.html", "new", force=True)
    assert (tmp_path / "kept").read_text() == "kept"
    assert not (tmp_path / "a.html").is_symlink()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    if failing == "replace":
        monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "a.html"
    out.write_text("old")
    with pytest.raises(ExportError, match="No space left on device"):
        write_file(out, "new", force=True)
    assert out.read_text() == "old"
    assert names(tmp_path) == ["a.html"]
