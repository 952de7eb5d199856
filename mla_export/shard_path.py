"""The path guard of a model folder: only files of the folder itself are ever opened."""

from __future__ import annotations

from pathlib import Path

from mla_runtime.errors import CheckpointError


def guarded(folder: Path, name: str) -> Path:
    """Give the path of the file `name` of a model folder; raises CheckpointError if it leads elsewhere.

    A name is a bare file name. A link must stay in the folder, except for those of Hugging Face's
    cache, where `snapshots/REVISION/name` points into the `blobs` beside `snapshots`.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise CheckpointError(
            f"{folder}: {name!r} is not the name of a file of this folder; it was not opened"
        )
    path = folder / name
    try:
        home, target = folder.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{path}: is missing; download the checkpoint again") from error
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise CheckpointError(
            f"{path}: is a link to {target}, outside the model folder; copy the file, or name the folder "
            "that it is in"
        )
    if not target.is_file():
        raise CheckpointError(f"{path}: is not a regular file")
    return path
