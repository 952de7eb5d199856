"""Export models with Multi-head Latent Attention to ONNX bundles, and prove what they compute.

Names are imported when they are first used: `inspect` and `run` must work where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_export.export import export
    from mla_export.verify import verify

__all__ = ["export", "verify"]

_HOME = {"export": "mla_export.export", "verify": "mla_export.verify"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
