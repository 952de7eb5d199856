"""The short cut that the parity tests take to their bundles gives the very files that an export gives."""

from __future__ import annotations

import pytest

from mla_export.export import export
from tests.parity.conftest import CHUNK


@pytest.mark.parametrize(("case", "absorb"), [("deepseek_v3", "factored"), ("minicpm3", "expanded")])
def test_quick_bundles_are_those_of_a_plain_export(witness, bundle, tmp_path, case, absorb):
    plain = export(witness(case).path, tmp_path / "plain", absorb=absorb, chunk=CHUNK)
    quick = bundle(case, absorb)
    for name in ("step.onnx", "prompt.onnx", "weights.data"):
        assert (plain / name).read_bytes() == (quick / name).read_bytes(), name
