"""The one path guard: a name from an untrusted file stays inside the folder that holds the file."""

from __future__ import annotations

from pathlib import Path

from mla_runtime.errors import MlaError


def guarded(root: Path, name: str, where: str, error: type[MlaError]) -> Path:
    """Give the path of the regular file `name` of the folder `root`, or raise `error`.

    A name is a bare file name. `root` may itself be a link. A link in it must lead to a file of the
    folder itself, or from a snapshot of a Hugging Face cache to the blobs of the same model
    (`snapshots/<revision>/name` -> `blobs/<hash>`). `where` tells the reader of the message which
    entry holds the name.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        msg = f"{where}: {name!r} is not the plain name of a file in {root}; "
        raise error(msg + "do not use this folder, get it again")
    path = root / name
    try:
        home, real = root.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as cause:  # a loop of links; a name that no file can have
        raise error(f"{where}: {name!r} is missing or cannot be read ({cause}); get it again") from cause
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if real.parent not in homes:
        msg = f"{where}: {name!r} is a link that leads out of its folder, to {real}; "
        raise error(msg + "copy the file into the folder")
    if not real.is_file():
        raise error(f"{where}: {name!r} is not a regular file; get it again")
    return path
