"""Export models with Multi-head Latent Attention to ONNX bundles, and prove what they compute.

Names are imported when they are first used: `inspect` and `run` must work where torch is not installed.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_export.compare.agreement import compare
    from mla_export.export import export
    from mla_export.verify import verify

__all__ = ["compare", "export", "verify"]

_HOME = {
    "compare": "mla_export.compare.agreement",
    "export": "mla_export.export",
    "verify": "mla_export.verify",
}


class _Package(types.ModuleType):
    """Keeps functions that are named like their modules, which an import would bind over them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
