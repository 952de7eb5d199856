"""TensorRT-RTX's bindings for the tests that compile: they are not missed silently where it counts."""

from __future__ import annotations

import os

import pytest

from mla_runtime.engines.flavour import RTX, Library

if "CI" in os.environ:  # there a missing package must not pass for a build that works
    import tensorrt_rtx
else:
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")

LIBRARY: Library = RTX.load()
