"""Export in a second instead of five, for tests that make dozens of bundles.

Most of an export's time is torch's exporter building its table of ONNX functions and decomposing a graph that
holds `mla::` operators only. Both are left out here. That the files are the same byte for byte is what
`tests/parity/test_quick_trace.py` holds, so that nothing else is tested than what users get.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

_once = functools.cache(functools.cache)  # one cache for each function, kept from context to context


@contextmanager
def quick_tracing() -> Iterator[None]:
    """Trace quickly inside; where torch has moved its internals, as slowly as ever."""
    try:
        from torch.onnx._internal.exporter import _core, _registration

        passes, registry = _core._fx_passes, _registration.ONNXRegistry
        assert callable(passes.decompose_with_registry)
        cached = staticmethod(_once(registry.from_torchlib))
    except (ImportError, AttributeError, AssertionError):
        yield
        return
    with (
        mock.patch.object(registry, "from_torchlib", cached),
        mock.patch.object(passes, "decompose_with_registry", lambda program, registry: program),
    ):
        yield
