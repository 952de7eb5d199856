"""How much memory this process may take: that of the machine, or of the container it runs in."""

from __future__ import annotations

import os
from pathlib import Path


def memory_limit(root: Path = Path("/")) -> int | None:
    """Give the bytes of memory that processes here may have in all, or None where the system does not tell.

    It is the least of the machine's memory and of every limit of the control groups above this
    process, of version 2 and of version 1, found below `root`. A group may be killed at its limit.
    """
    limits = [_machine(), *_groups(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _machine() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _groups(root: Path) -> list[int | None]:
    mounted = root / "sys/fs/cgroup"
    files = [mounted / "memory.max", mounted / "memory/memory.limit_in_bytes"]
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, kinds, path = (*line.split(":", 2), "", "")[:3]
        base, name = mounted, "memory.max"
        if number != "0":
            base, name = mounted / "memory", "memory.limit_in_bytes"
            if "memory" not in kinds.split(","):
                continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        files += [base.joinpath(*parts[:count], name) for count in range(1, len(parts) + 1)]
    return [int(text) if (text := _text(file).strip()).isdigit() else None for file in files]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
