"""Weights on huge pages: a step reads each of them once, and with pages of 4 KiB waits for page tables.

Linux gives huge pages to memory that asks for them (`madvise`); ONNX Runtime's allocator does not ask. A
step of 1.06 B int4 parameters on two cores took 44 ms without and 37 ms with them.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_HUGE = 2 << 20
_PIECE = 64 << 20  # other threads wait for their memory while one piece is moved
_LEAST = 64 << 20  # below this the processor's own tables do
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25  # since Linux 6.1; before it the kernel's own thread comes round, in minutes

Range = tuple[int, int]


def anonymous() -> list[Range]:
    """Give this process's private memory that is no file's, in order; nothing where there is no such list."""
    if sys.platform != "linux":
        return []
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        span, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = (int(x, 16) for x in span.split("-"))
            found.append((start, end))
    return found


def move_to_huge_pages(before: list[Range], owner: object) -> threading.Thread | None:
    """Move what was allocated since `before`, in the background, as far as the system lets it.

    It takes a fifth of a second to some seconds a GB, which nobody has to wait for. `owner` is what the
    memory belongs to: it is kept until all is moved. None where there is little to gain.
    """
    new = [(-(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE) for start, end in _without(anonymous(), before)]
    if sum(max(0, end - start) for start, end in new) < _LEAST:
        return None
    thread = threading.Thread(target=_move, args=(new, owner), name="huge pages", daemon=True)
    thread.start()
    return thread


def _move(ranges: list[Range], owner: object) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in ranges:
        for piece in range(start, end, _PIECE):
            size = min(_PIECE, end - piece)
            # Both are advice: a system that does not follow it has lost nothing.
            madvise(piece, size, _MADV_HUGEPAGE)
            madvise(piece, size, _MADV_COLLAPSE)
    del owner


def _without(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """Give the parts of `ranges` that are not in `taken`; both are in order and do not overlap."""
    found = []
    for start, end in ranges:
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                found.append((start, low))
            start = high
        if start < end:
            found.append((start, end))
    return found
