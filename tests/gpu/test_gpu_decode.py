"""The benchmark of decode steps on a GPU: what it refuses, and its arithmetic over a fake device."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.fake_device import FakeDevice
from tests.runtime.rig import make_rig

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu_decode(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu_decode")


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, str(FOLDER / "gpu_decode.py"), "no-bundle", "--out", str(out)]
    ours = os.pathsep.join(str(FOLDER.parent / part) for part in (".", "graphs", "runtime"))
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ours}
    done = subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("no GPU: nothing measured (backend tensorrt-rtx: ")
    assert not out.exists()


def test_rows_are_bytes_over_bandwidth_and_stop_where_the_cache_ends(
    gpu_decode: Any, bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(bundles["float"], tmp_path / "engines")
    near, far = gpu_decode.rows(rig.model, 1e9, (100, 300, 600), 2, 3)
    row_bytes = sum(tensor.row_bytes for tensor in rig.model.bundle.cache)
    assert far.nbytes - near.nbytes == 2 * 200 * row_bytes
    assert near.roofline_seconds == near.nbytes / 1e9
    assert near.share == near.roofline_seconds / near.step_seconds > 0
    assert "600: max_context" in capsys.readouterr().err
    lines = gpu_decode.table([near, far]).splitlines()
    assert lines[2].startswith("| 100 |")
    assert lines[3].startswith("| 300 |")
    assert rig.device.streams[-1].replayed


def test_torch_attention_reads_geometry_that_a_bundle_has(gpu_decode: Any, bundles: dict[str, Path]) -> None:
    torch = pytest.importorskip("torch")
    geometry = json.loads((bundles["float"] / "bundle.json").read_text())["model"]["geometry"]
    sizes = gpu_decode.attention_sizes(geometry)
    assert all(isinstance(size, int) and size > 0 for size in sizes)
    if not torch.cuda.is_available():
        assert gpu_decode.torch_attention(geometry, 64, 1, 1) is None


def test_bandwidth_counts_bytes_read_and_written(gpu_decode: Any) -> None:
    device = FakeDevice()
    assert gpu_decode.copy_bandwidth(device, 1 << 20, 2) > 0
    assert not device.blocks
