"""The memory that this process may take: a container's limit counts, not the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mla_runtime.backends.ort import OrtBackend
from mla_runtime.bundle import Bundle
from mla_runtime.memory import memory_limit

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB without control groups."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    return tmp_path / "root"


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_machine_without_control_groups_has_its_memory(root: Path) -> None:
    assert memory_limit(root) == 64 * GIB


def test_a_container_has_its_own_limit(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/\n")
    write(root, "sys/fs/cgroup/memory.max", f"{2 * GIB}\n")
    assert memory_limit(root) == 2 * GIB


def test_the_least_limit_of_all_groups_above_counts(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/user.slice/job\n")
    write(root, "sys/fs/cgroup/user.slice/memory.max", f"{3 * GIB}\n")
    write(root, "sys/fs/cgroup/user.slice/job/memory.max", "max\n")
    assert memory_limit(root) == 3 * GIB


def test_groups_of_version_1(root: Path) -> None:
    write(root, "proc/self/cgroup", "7:cpu,cpuacct:/other\n5:memory:/docker/abc\n")
    write(root, "sys/fs/cgroup/memory/other/memory.limit_in_bytes", "1")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert memory_limit(root) == 64 * GIB
    write(root, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{GIB}\n")
    assert memory_limit(root) == GIB


def test_a_system_that_does_not_tell(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert memory_limit(root) is None


@pytest.mark.parametrize(("limit", "packs"), [(None, False), (100_000, False), (GIB, True)])
def test_weights_are_packed_only_where_a_copy_fits(
    bundle: Path, limit: int | None, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mla_runtime.backends.ort.memory_limit", lambda: limit)
    assert Bundle.open(bundle).nbytes > 25_000
    backend = OrtBackend(Bundle.open(bundle), threads=1)
    backend.graph("step", 2)
    assert (("step", True) in backend._graphs) == packs
