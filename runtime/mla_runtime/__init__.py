"""Decode with MLA bundles. Names are imported when first used, so that `import mla_runtime` is light."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_runtime.bench import Speed, measure
    from mla_runtime.bundle import Bundle
    from mla_runtime.canary import CanaryResult, check_canary
    from mla_runtime.generate import Completion, Stream, Token
    from mla_runtime.model import Model, open  # noqa: A004 - the public name, as `gzip.open`
    from mla_runtime.sampling import Sampling
    from mla_runtime.session import Session

_HOMES = {
    "Bundle": "bundle",
    "CanaryResult": "canary",
    "Completion": "generate",
    "Model": "model",
    "Sampling": "sampling",
    "Session": "session",
    "Speed": "bench",
    "Stream": "generate",
    "Token": "generate",
    "check_canary": "canary",
    "measure": "bench",
    "open": "model",
}

__all__ = [
    "Bundle",
    "CanaryResult",
    "Completion",
    "Model",
    "Sampling",
    "Session",
    "Speed",
    "Stream",
    "Token",
    "check_canary",
    "measure",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
