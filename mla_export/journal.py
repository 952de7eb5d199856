"""What an interrupted export had finished: a journal beside the weights file, in the staging folder.

Its first line identifies all that determines the weights' bytes; each further line is a finished parameter:
its name, where it ends in the file, the SHA-256 of the file up to there, and what its rounding changed. The
running hash of a later export, which has to read those bytes anyway, thereby tells whether they are what was
written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from mla_export.checkpoint import Checkpoint
from mla_export.layout import Layout
from mla_export.plan import Plan
from mla_export.quantiser import Sums
from mla_runtime.manifest import Calibration

if TYPE_CHECKING:
    from hashlib import _Hash

JOURNAL = "weights.journal"
WEIGHTS = "weights.data"
_CHUNK = 1 << 24
_MOST_BYTES = 1 << 28


def fingerprint(source: Checkpoint, plan: Plan, layout: Layout, calibration: Calibration | None) -> str:
    """Identify the bytes of a weights file: checkpoint, plan, layout, calibration, and what computes.

    Files are told by inode, size and time: reading them all would take as long as much of what is to be
    saved.
    """
    files = {path.name: path.stat() for path in source.files()}
    content = {
        "files": {name: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in files.items()},
        "plan": dataclasses.asdict(plan),
        "versions": {name: version(name) for name in ("mla-export", "torch", "numpy")},
        "computes": (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()),
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
        "layout": [str(weight) for weight in layout.weights],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def resumable(staging: Path, identity: str) -> frozenset[str]:
    """Give the files of an abandoned staging folder that an export of `identity` goes on with, or none."""
    try:
        kept = [(staging / name).lstat() for name in (JOURNAL, WEIGHTS)]
        own = all(stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() for found in kept)
        if own and kept[0].st_size <= _MOST_BYTES:
            lines = _read(staging / JOURNAL)
            if len(lines) > 1 and lines[0] == {"identity": identity}:
                return frozenset((JOURNAL, WEIGHTS))
    except OSError:
        pass  # a folder that cannot be read is not gone on with
    return frozenset()


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of the weights file in the folder `staging`, for an export of `identity`."""

    staging: Path
    identity: str

    def open(self) -> tuple[IO[bytes], _Hash, list[Sums | None]]:
        """Open the weights file behind its finished parameters: file, hash so far, what was added with each.

        What does not match its hash, and all behind it, is cut off. Without a journal the file is made anew.
        """
        weights = self.staging / WEIGHTS
        if not resumable(self.staging, self.identity):
            self._write([])
            return weights.open("wb"), hashlib.sha256(), []
        file = weights.open("r+b")
        accepted: list[dict[str, object]] = []
        digest = hashlib.sha256()
        end = 0
        for line in _read(self.staging / JOURNAL)[1:]:
            ahead = digest.copy()
            if not _feed(ahead, file, line.get("end"), end) or ahead.hexdigest() != line.get("sha256"):
                break
            digest = ahead
            end = file.tell()
            accepted.append(line)
        file.seek(end)
        file.truncate()
        self._write(accepted)
        return file, digest, [_sums(line.get("errors")) for line in accepted]

    def add(self, parameter: str, end: int, digest: _Hash, errors: Sums | None) -> None:
        """Note a finished parameter and its `WeightErrors.sums`.

        Its bytes have been handed to the system, so that a kill keeps them; after a loss of power the hash
        shows what did not reach the disk.
        """
        line = {"parameter": parameter, "end": end, "sha256": digest.hexdigest(), "errors": errors}
        with (self.staging / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        """Remove the journal, which is no part of a bundle."""
        (self.staging / JOURNAL).unlink()

    def _write(self, lines: Sequence[dict[str, object]]) -> None:
        content = [{"identity": self.identity}, *lines]
        (self.staging / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in content))


def _read(path: Path) -> list[dict[str, object]]:
    """Give the journal's lines, up to one that a kill may have cut."""
    lines = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def _sums(value: object) -> Sums | None:
    match value:
        case [float(error), float(size)]:
            return error, size
    return None


def _feed(digest: _Hash, file: IO[bytes], end: object, at: int) -> bool:
    """Hash the file from `at` to `end`; tell whether it is that long."""
    if not isinstance(end, int) or end < at:
        return False
    while at < end:
        data = file.read(min(_CHUNK, end - at))
        if not data:
            return False
        digest.update(data)
        at += len(data)
    return True
