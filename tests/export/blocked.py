"""The command line where some packages are not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKING = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors"}


def blocked(names: set[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter in which some packages cannot be imported."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {names!r}: raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from mla_export.cli import main\n"
        f"sys.exit(main({list(words)!r}))\n"
    )
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "graphs", "runtime"))
    env = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
