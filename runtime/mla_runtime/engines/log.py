"""TensorRT's own messages: kept where an error will want them, and never printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGERS: dict[str, Any] = {}


def logger(trt: Any) -> Any:
    """Give the logger of the bindings `trt`, which keep the first they see for the life of the process."""
    if trt.__name__ not in _LOGGERS:
        _LOGGERS[trt.__name__] = _make(trt)
    return _LOGGERS[trt.__name__]


@contextmanager
def errors(trt: Any) -> Iterator[list[str]]:
    """Collect the errors that TensorRT reports inside."""
    kept = logger(trt).kept
    kept.clear()
    yield kept


def _make(trt: Any) -> Any:
    serious = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Kept(trt.ILogger):  # type: ignore[misc] # the bindings have no types
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.kept.append(message)

    return Kept()
