"""The public names are exactly `__all__`, and importing them costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mla_runtime

ROOT = Path(mla_runtime.__file__).parents[1]


def test_public_names_are_exactly_all() -> None:
    assert mla_runtime.__all__ == sorted(mla_runtime.__all__)
    assert dir(mla_runtime) == mla_runtime.__all__
    for name in mla_runtime.__all__:
        assert getattr(mla_runtime, name).__module__.startswith("mla_runtime.")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mla_runtime.nothing  # type: ignore[attr-defined]


def test_importing_and_opening_a_bundle_loads_no_engine_and_no_tokenizer(bundle: Path) -> None:
    code = (
        "import sys, mla_runtime\n"
        "assert 'numpy' not in sys.modules\n"
        f"mla_runtime.Bundle.open({str(bundle)!r})\n"
        "mla_runtime.Session, mla_runtime.Sampling, mla_runtime.measure\n"
        "late = {'onnxruntime', 'tokenizers', 'jinja2', 'torch', 'onnx', 'rich'} & set(sys.modules)\n"
        "assert not late, late\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})
