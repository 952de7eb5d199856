"""When a bundle is hashed, and that nothing but its hashes vouches for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest

import mla_runtime
from mla_runtime.bundle import Bundle
from tests.runtime.broken import content, refused, save
from tests.runtime.handmade import write_manifest


class Hashing:
    """Counts the bytes that opening a bundle hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> int:
        counted: list[int] = []
        Bundle.open(self.folder).ensure_hashed(counted.append)
        return sum(counted)


def test_a_bundle_is_hashed_once_and_again_when_a_file_changes(folder: Path, cache_home: Path) -> None:
    opened, size = Hashing(folder), Bundle.open(folder).nbytes
    assert [opened(), opened(), opened()] == [size, 0, 0]
    assert not any(path.suffix == ".json" and path.name != "bundle.json" for path in folder.iterdir())
    os.utime(folder / "weights.data")
    assert [opened(), opened()] == [size, 0]
    shutil.copy(folder / "step.onnx", folder / "new")
    (folder / "new").replace(folder / "step.onnx")
    assert [opened(), opened()] == [size, 0]
    shutil.rmtree(cache_home)
    assert [opened(), opened()] == [size, 0]


def test_a_byte_changed_with_its_time_set_back_is_found(folder: Path) -> None:
    mla_runtime.open(folder)
    path = folder / "weights.data"
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"\x55")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(folder, f"{path}: SHA-256")


def test_a_manifest_with_other_hashes_is_hashed_again(folder: Path) -> None:
    mla_runtime.open(folder)
    raw = content(folder)
    raw["files"]["weights.data"]["sha256"] = "0" * 64
    save(folder, raw)
    refused(folder, f"is not {'0' * 64} of bundle.json; the file is damaged, get the bundle again")


def test_a_manifest_that_makes_another_file_its_graph_is_looked_at_again(folder: Path) -> None:
    proto = onnx.load(folder / "step.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "unlisted.bin"
    (folder / "extra.onnx").write_bytes(proto.SerializeToString())
    write_manifest(folder, {k: v for k, v in content(folder).items() if k != "sha256"})
    mla_runtime.open(folder)
    (folder / "unlisted.bin").write_bytes((folder / "weights.data").read_bytes())
    raw = content(folder)
    raw["graphs"]["step"]["file"] = "extra.onnx"
    save(folder, raw)
    refused(folder, "extra.onnx: a tensor lies in 'unlisted.bin', which bundle.json does not list")


def test_what_was_verified_is_not_hashed_again(folder: Path) -> None:
    Bundle.open(folder).verify_hashes()
    assert Hashing(folder)() == 0


def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(folder: Path) -> None:
    Bundle.open(folder).ensure_hashed(lambda count: os.utime(folder / "weights.data"))
    assert Hashing(folder)() == Bundle.open(folder).nbytes


def test_verify_hashes_what_was_hashed_before(folder: Path) -> None:
    opened = Bundle.open(folder)
    opened.ensure_hashed()
    counted: list[int] = []
    opened.verify_hashes(counted.append)
    assert sum(counted) == opened.nbytes


@pytest.mark.parametrize("stamped", [b"", b"{}", b"[1", b"\xff", b"null"])
def test_a_damaged_stamp_only_means_hashing_again(folder: Path, cache_home: Path, stamped: bytes) -> None:
    opened = Hashing(folder)
    opened()
    (stamp,) = cache_home.rglob("*.json")
    stamp.write_bytes(stamped)
    assert opened() == Bundle.open(folder).nbytes
    assert opened() == 0


def test_an_unwritable_cache_folder_only_means_hashing_again(folder: Path, cache_home: Path) -> None:
    cache_home.write_text("a file where the folder should be")
    opened = Hashing(folder)
    assert opened() == opened() == Bundle.open(folder).nbytes
