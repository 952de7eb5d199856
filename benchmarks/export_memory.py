"""Time and peak memory of an export, beside copying the same bytes.

    python benchmarks/export_memory.py CHECKPOINT OUT [mla-export export options]

The export runs as the command line runs it, in a process of its own, so that its peak is its own. Private
memory is what the process holds of its own (RssAnon, sampled); the peak of the resident set counts the
mapped pages of the layer that the canary is at too, which the system takes back when it needs them. Beside
it stands what an export may take: three times the largest tensor and 2 GB, the tensor being that of the
checkpoint as it is stored there. The copy writes the weights file once more, flushed to the disk, in the
same run.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mla_export.checkpoint import Checkpoint


def private_bytes(pid: int) -> int:
    """Give RssAnon of a process, 0 when it has just gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def bound(checkpoint: str) -> tuple[int, str]:
    """Give the bytes that an export of the checkpoint may take, and of what tensor."""
    tensors = Checkpoint.open(checkpoint).tensors
    largest = max(tensors, key=lambda name: tensors[name].nbytes)
    return 3 * tensors[largest].nbytes + 2 * 10**9, largest


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    checkpoint, out, *options = sys.argv[1:]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "mla_export", "export", checkpoint, out, *options])
    private = 0
    while process.poll() is None:
        private = max(private, private_bytes(process.pid))
        time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    exported = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    weights = Path(out) / "weights.data"
    copy = Path(out).with_name(f"{Path(out).name}.copy")
    start = time.perf_counter()
    shutil.copyfile(weights, copy)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    copied = time.perf_counter() - start
    copy.unlink()
    size = weights.stat().st_size
    print(f"weights file {size / 1e9:.2f} GB, export {exported:.1f} s")
    limit, largest = bound(checkpoint)
    verdict = "within" if peak <= limit else "ABOVE"
    print(f"peak private memory {private / 1e9:.2f} GB, peak resident set {peak / 1e9:.2f} GB")
    print(f"{verdict} the bound of {limit / 1e9:.2f} GB: 3 times {largest} and 2 GB")
    print(f"copying the weights file {copied:.1f} s: the export takes {exported / copied:.1f} times that")


if __name__ == "__main__":
    main()
