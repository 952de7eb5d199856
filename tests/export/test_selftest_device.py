"""`selftest` as a Jetson has it: no torch, no onnx, no matplotlib, and every stage in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mla_export import cli
from tests.runtime.handmade import canary, make_bundle

ROOT = Path(__file__).resolve().parents[2]
# a sitecustomize reaches the processes of the stages too
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "matplotlib"}:
            raise ModuleNotFoundError(f"no {name}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_a_device_with_a_bundle_alone_does_what_it_can(tmp_path: Path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    bundle = make_bundle(tmp_path / "b", canary=canary([5, 6, 7], [8, 9]))
    paths = [tmp_path / "site", ROOT, ROOT / "graphs", ROOT / "runtime"]
    command = [sys.executable, "-m", "mla_export", "selftest", str(bundle), "--backend", "tensorrt", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == cli.EXIT_NOT_ON_HARDWARE, done.stderr
    found = json.loads(done.stdout)
    outcomes = [(s["name"], s["backend"], s["outcome"]) for s in found["stages"]]
    assert outcomes[:4] == [
        ("device", None, "passed"),
        ("bundle", None, "passed"),
        ("canary", "ort:cpu", "passed"),
        ("speed", "ort:cpu", "passed"),
    ]
    assert {outcome for _, backend, outcome in outcomes if backend == "tensorrt"} == {"skipped"}
    assert "canary of b on ort:cpu" in done.stderr
    assert "matplotlib is not installed" in (tmp_path / "out" / "selftest.html").read_text()
