"""The one path guard: a name from an untrusted file stays inside the folder that holds the file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from mla_runtime.errors import MlaError


def guarded(root: Path, name: str, where: str, error: type[MlaError]) -> Path:
    """Give the path of the regular file `name` inside `root`, or raise `error`.

    Refused: empty and absolute names, `..`, backslashes, and links that lead out of `root`, except
    from a snapshot to the blobs of the same model in a Hugging Face cache (`snapshots/<revision>/x`
    -> `blobs/<hash>`). `where` tells the reader of the message which entry holds the name.
    """
    parts = PurePosixPath(name).parts
    plain = bool(parts) and "\\" not in name and "\0" not in name and ".." not in parts
    if not plain or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        msg = (
            f"{where}: {name!r} is not a plain relative path inside {root}; "
            "do not use this folder, get it again"
        )
        raise error(msg)
    path = root / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as cause:
        raise error(
            f"{where}: {path} is missing or cannot be read ({cause}); get the folder again"
        ) from cause
    if not any(real.is_relative_to(home) for home in _homes(root)):
        msg = (
            f"{where}: {path} is a link that leads out of its folder, "
            f"to {real}; copy the file into the folder"
        )
        raise error(msg)
    if not real.is_file():
        raise error(f"{where}: {path} is not a regular file; get the folder again")
    return path


def _homes(root: Path) -> list[Path]:
    """List the folders in which a file of `root` may really be."""
    homes = [root.resolve()]
    snapshots = root.absolute().parent
    if snapshots.name == "snapshots" and not snapshots.is_symlink():
        homes.append((snapshots.parent / "blobs").resolve())
    return homes
