"""Writing one file at once: beside its name first, then renamed into place, or not there at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mla_runtime.errors import ExportError


def check_file(out: Path, *, force: bool) -> None:
    """Refuse a file that cannot or may not be written, before there is anything to write."""
    if not out.parent.is_dir():
        raise ExportError(f"{out}: there is no folder {out.parent}; make it, or choose another")
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out}: the folder {out.parent} cannot be written to; choose another")
    if out.is_dir() or (out.exists() and not out.is_file()):
        raise ExportError(f"{out} is there and is no file; choose another name")
    if not force and (out.exists() or out.is_symlink()):
        raise ExportError(f"{out} is there already; give --force to replace it, or choose another name")


def write_file(out: Path, content: str, *, force: bool) -> None:
    """Write `content` in UTF-8 to `out`, which is then the old file or the new one, whatever interrupts it.

    Raises ExportError where it cannot be written, or has come up since and is not to be replaced.
    """
    check_file(out, force=force)
    staged: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=out.parent, prefix=f".{out.name}.staging-", delete=False
        ) as file:
            staged = Path(file.name)
            file.write(content.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        staged.chmod(0o666 & ~_umask())
        check_file(out, force=force)
        staged.replace(out)
    except OSError as cause:
        raise ExportError(f"{out}: writing failed ({cause}); nothing was changed there") from cause
    finally:
        if staged is not None:
            staged.unlink(missing_ok=True)


def _umask() -> int:
    """Give the process's umask: what is written has the permissions of any other file."""
    current = os.umask(0)
    os.umask(current)
    return current
