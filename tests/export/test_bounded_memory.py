"""An export's memory is bounded by a tensor, not by the model: shown under a limit that the model breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).parents[2]
LAYERS, HIDDEN, INTERMEDIATE = 16, 512, 2048
# gate and up of a layer, joined, in float32
LARGEST = 2 * HIDDEN * INTERMEDIATE * 4
# What an export takes beside tensors: graphs, buffers of files, what an allocator holds back. All together it
# took 49 MB in a run.
BESIDE = 96 * 10**6

# Exports a tiny model first, so that all code, threads and pools are there; then limits the address space to
# what that took and argv[4] bytes, and exports the model. Last it does two things that hold the whole model.
SCRIPT = """
import resource, sys
from pathlib import Path
import torch
import mla_runtime
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_runtime.errors import BackendError
from tests.quick_trace import quick_tracing

def address_space():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Vm")}

def fails(act):
    try:
        act()
    except (MemoryError, RuntimeError, BackendError) as error:
        return type(error).__name__
    return "did not fail"

tiny, model, out, more = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
with quick_tracing():
    export(tiny, out / "tiny")
    base = address_space()["VmSize"]
    resource.setrlimit(resource.RLIMIT_AS, (base + more, base + more))
    export(model, out / "bundle")
print("export took", (address_space()["VmPeak"] - base) // 10**6, "MB more")
print("open", fails(lambda: mla_runtime.open(out / "bundle", threads=1)))
source = Checkpoint.open(model)
print("read", fails(lambda: [source.read(name) for name in source.tensors]))
"""


def run(tiny: Path, model: Path, out: Path, more: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, str(tiny), str(model), str(out), str(more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    tiny = make_checkpoint(folder / "tiny", "deepseek_v3", num_hidden_layers=2, first_k_dense_replace=2)
    model = make_checkpoint(
        folder / "model",
        "deepseek_v3",
        num_hidden_layers=LAYERS,
        first_k_dense_replace=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
    )
    return tiny, model


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits the address space")
def test_export_stays_within_three_tensors_where_the_model_does_not_fit(models, tmp_path):
    done = run(*models, tmp_path, 3 * LARGEST + BESIDE)
    assert done.returncode == 0, done.stderr
    weights = (tmp_path / "bundle" / "weights.data").stat().st_size
    assert weights > 1.5 * (3 * LARGEST + BESIDE)  # the whole model does not fit
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found["open"] == "BackendError"
    assert found["read"] in ("MemoryError", "RuntimeError")
