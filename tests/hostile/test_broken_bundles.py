"""Broken and hostile bundles: each file is refused with its exact error, before anything runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mla_runtime
from mla_export.cli import main
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BundleError
from mla_runtime.paths import guarded
from tests.runtime.broken import content, refused, save


@pytest.mark.parametrize("name", ["step.onnx", "prompt.onnx", "weights.data"])
def test_any_flipped_bit_is_found(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        for bit in (0, 7):
            data[place] ^= 1 << bit
            path.write_bytes(data)
            refused(folder, f"{path}: SHA-256 {hashlib.sha256(data).hexdigest()} is not ")
            data[place] ^= 1 << bit
    path.write_bytes(data)
    mla_runtime.open(folder)


def test_any_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / "bundle.json"
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 7):
        bit = 1 << (place % 8)
        data[place] ^= bit
        path.write_bytes(data)
        with pytest.raises(BundleError):
            Bundle.open(folder)
        data[place] ^= bit


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda data: data[:-1], "bytes, not the"), (lambda data: data + b"\0", "bytes, not the")],
    ids=["truncated", "over-long"],
)
def test_sizes(folder: Path, change: Callable[[bytes], bytes], problem: str) -> None:
    path = folder / "weights.data"
    data = path.read_bytes()
    path.write_bytes(change(data))
    refused(folder, f"{path}: {len(change(data))} {problem} {len(data)} of bundle.json; get the bundle again")


def test_a_missing_file(folder: Path) -> None:
    (folder / "weights.data").unlink()
    refused(folder, f"{folder / 'bundle.json'}: files: 'weights.data' is missing or cannot be read")


def test_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "not a folder; give the folder of a bundle, the one that holds bundle.json")
    refused(tmp_path, f"{tmp_path}: 'bundle.json' is missing")


def test_a_checkpoint_is_to_be_exported_first(folder: Path) -> None:
    (folder / "config.json").write_text("{}")  # beside a manifest it is one file more
    Bundle.open(folder)
    (folder / "bundle.json").unlink()
    refused(folder, f"{folder}: is a checkpoint, not a bundle; export it first: mla-export export {folder} B")


def test_a_newer_format(folder: Path) -> None:
    # a newer format may have other keys and no digest: it must still be told apart
    (folder / "bundle.json").write_text(json.dumps({"format": 2, "something": "new"}))
    refused(folder, "format 2, newer than 1, the newest known here; upgrade mla-export to run it")


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_no_format(folder: Path, version: Any) -> None:
    save(folder, content(folder) | {"format": version})
    refused(folder, f"format is {version!r}, not a format number; this is not a bundle of mla-export")


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "inside/weights.data",
        "a/../../secret",
        "/etc/passwd",
        "..",
        "",
        ".",
        "C:\\secret",
        "..\\secret",
        "C:secret",
        "a\0b",
    ],
)
def test_paths_stay_inside(folder: Path, name: str) -> None:
    raw = content(folder)
    raw["files"][name] = raw["files"].pop("weights.data")
    save(folder, raw)
    refused(
        folder,
        f"{folder / 'bundle.json'}: files: {name!r} is not the plain name of a file in {folder}; do not",
    )


def test_links_stay_inside(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "weights.data"
    shutil.move(folder / "weights.data", outside)
    (folder / "weights.data").symlink_to(outside)
    refused(folder, f"'weights.data' is a link that leads out of its folder, to {outside}")
    (folder / "weights.data").unlink()
    shutil.move(outside, folder / "inside.data")
    (folder / "weights.data").symlink_to("inside.data")
    Bundle.open(folder)


def test_links_of_a_hugging_face_cache_are_followed_to_their_blobs_only(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--someone--model"
    snapshot, blobs = model / "snapshots" / "0123abcd", model / "blobs"
    snapshot.parent.mkdir(parents=True)
    shutil.move(folder, snapshot)
    blobs.mkdir()
    shutil.move(snapshot / "weights.data", blobs / "feed")
    (snapshot / "weights.data").symlink_to("../../blobs/feed")
    Bundle.open(snapshot)
    (tmp_path / "latest").symlink_to(snapshot)
    Bundle.open(tmp_path / "latest")
    shutil.move(blobs / "feed", model / "feed")
    (snapshot / "weights.data").unlink()
    (snapshot / "weights.data").symlink_to("../../feed")
    refused(snapshot, "is a link that leads out of its folder")


def test_a_loop_of_links(folder: Path) -> None:
    (folder / "weights.data").unlink()
    (folder / "weights.data").symlink_to("weights.data")
    refused(folder, "'weights.data' is missing or cannot be read")


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "weights.data").unlink()
    (folder / "weights.data").mkdir()
    refused(folder, "'weights.data' is not a regular file")


@pytest.mark.parametrize(
    ("use", "cap"), [("step.onnx", 2**31), ("prompt.onnx", 2**31), ("tokenizer.json", 100 * 2**20)]
)
def test_files_that_are_read_whole_are_capped(folder: Path, use: str, cap: int) -> None:
    path = folder / use
    path.touch()
    os.truncate(path, cap + 1)  # a hole: it takes no space
    raw = content(folder)
    raw["files"][use] = {"size": cap + 1, "sha256": "0" * 64}
    raw["text"]["tokenizer"] = "tokenizer.json" if use == "tokenizer.json" else None
    save(folder, raw)
    refused(folder, f"{folder / 'bundle.json'}: {use!r} has {cap + 1} bytes, more than the {cap} for its use")


@pytest.mark.parametrize("name", ["\ud800", "a" * 5000])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is missing or cannot be read"):
        guarded(tmp_path, name, "here", BundleError)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


DAMAGE: list[tuple[int, Callable[[Path], object], str]] = [
    (0, flip, "weights.data"),
    (0, flip, "step.onnx"),
    (1, Path.unlink, "weights.data"),
    (1, cut, "prompt.onnx"),
    (2, Path.unlink, "bundle.json"),
    (2, cut, "bundle.json"),
    (2, flip, "bundle.json"),
]


@pytest.mark.parametrize(("row", "damage", "name"), DAMAGE)
def test_exit_codes_of_damaged_bundles_are_those_of_the_docs(
    row: int,
    damage: Callable[[Path], object],
    name: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
    table = page.read_text(encoding="utf-8").partition("| what is wrong |")[2].splitlines()[2:]
    verify, decode, inspect = (int(cell.strip()[0]) for cell in table[row].split("|")[2:5])
    damage(folder / name)
    path = str(folder)
    assert main(["verify", path, "--quiet"]) == verify
    assert ("FAILED" in capsys.readouterr().out) is (verify == 1)
    assert main(["run", path, "--ids", "1", "--quiet"]) == decode
    assert main(["bench", path, "--depths", "0", "--quiet"]) == decode
    if inspect == 0:
        Bundle.open(folder)  # a handmade bundle has no geometry to inspect
    else:
        assert main(["inspect", path]) == inspect
