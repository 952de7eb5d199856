"""A card that is none: ONNX Runtime under the name of a TensorRT backend, exact or off by a share."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from mla_export.compare import sides
from mla_runtime import backends
from mla_runtime.backends.base import Backend
from mla_runtime.backends.ort import OrtBackend
from mla_runtime.bundle import Bundle

NAME = "tensorrt"


def put_in(monkeypatch: pytest.MonkeyPatch, off: float = 0.0, error: Exception | None = None) -> None:
    """Let `tensorrt` be a backend whose logits are `off` times their size off, or that raises `error`."""

    def load(name: str, bundle: Bundle, threads: int | None, engines: str | None = None) -> Backend:
        made: Any = OrtBackend(bundle, threads)
        if name != NAME:
            return made
        if error is not None:
            raise error
        made.name, buffers = name, made.buffers

        def shifted(batch: int, rows: int) -> Any:
            given = buffers(batch, rows)
            run = given.run
            given.run = lambda call: run(call) * np.float32(1 + off)
            return given

        made.buffers = shifted
        return made

    monkeypatch.setattr(backends, "load", load)
    monkeypatch.setattr(backends, "NAMES", ("ort:cpu", NAME))
    monkeypatch.setattr(sides, "PLANNED", ("ort:cuda", "tensorrt-rtx"))
    # block outputs take onnx_ir, which a device does not have
    monkeypatch.setitem(sys.modules, "mla_export.compare.blocks", None)
