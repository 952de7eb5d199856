"""Memory is moved to huge pages where the system has them, and found without touching anything else."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_runtime.backends import huge_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SIZE = 80 << 20

ranges = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda ends: list(zip(*[iter(sorted(ends))] * 2, strict=False))
)


@given(ranges, ranges)
def test_what_was_there_before_is_left_out(now: list[tuple[int, int]], before: list[tuple[int, int]]) -> None:
    def points(spans: list[tuple[int, int]]) -> set[int]:
        return {x for start, end in spans for x in range(start, end)}

    assert points(huge_pages._without(now, before)) == points(now) - points(before)


def collapses() -> bool:
    """Whether this system moves memory to huge pages at once: Linux 6.1 and later, where it may."""
    version = [int(x) for x in re.findall(r"\d+", platform.release())[:2]]
    return SETTING.exists() and "[never]" not in SETTING.read_text() and version >= [6, 1]


@pytest.mark.skipif(not collapses(), reason="this system moves pages in its own time, or never")
def test_new_memory_is_on_huge_pages_and_keeps_what_it_holds() -> None:
    before = huge_pages.anonymous()
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE)
    memory.write(b"weights!" * (SIZE // 8))
    thread = huge_pages.move_to_huge_pages(before, memory)
    assert thread is not None
    thread.join()
    assert huge_bytes_around(memory) >= SIZE // 2  # the mapping need not begin where a huge page does
    assert memory[:8] == memory[-8:] == b"weights!"


def test_little_memory_is_left_where_it_is() -> None:
    before = huge_pages.anonymous()
    memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE)
    assert huge_pages.move_to_huge_pages(before, memory) is None


def test_a_system_without_the_list_of_mappings_has_nothing_to_move(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "missing")
    assert huge_pages.move_to_huge_pages([], None) is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.move_to_huge_pages([], None) is None


def huge_bytes_around(memory: mmap.mmap) -> int:
    """Read from the system how much of the mapping of `memory` is on huge pages."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            found = int(line.split()[1]) << 10
    return found
