"""Checkpoints and bundles are made once a session and shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_export.export import export
from tests.checkpoints import make_checkpoint
from tests.parity.witness import CASES, Witness
from tests.quick_trace import quick_tracing

CHUNK = 32  # beyond 24 queries the prompt graph rebuilds keys and values at these sizes, below it does not


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums in one order, and cores left for other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def witness(tmp_path_factory) -> Callable[..., Witness]:
    """Give the witness of a case by name (`CASES`), optionally with overrides, made once."""
    made: dict[str, Witness] = {}

    def get(case: str, max_context: int | None = None, **overrides: Any) -> Witness:
        key = repr((case, max_context, sorted(overrides.items())))
        if key not in made:
            family, own = CASES[case]
            path = tmp_path_factory.mktemp("checkpoint") / case
            made[key] = Witness(make_checkpoint(path, family, **{**own, **overrides}), max_context)
        return made[key]

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, witness) -> Callable[..., Path]:
    """Give the bundle of a case in a form of attention, made once; `forms` are more options of an export."""
    made: dict[str, Path] = {}

    def get(
        case: str,
        absorb: str = "factored",
        dtype: str = "fp32",
        max_context: int | None = None,
        forms: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Path:
        key = repr((case, absorb, dtype, max_context, forms, sorted(overrides.items())))
        if key not in made:
            source = witness(case, max_context, **overrides).path
            out = tmp_path_factory.mktemp("bundle") / absorb
            with quick_tracing():
                made[key] = export(
                    source,
                    out,
                    absorb=absorb,
                    dtype=dtype,
                    max_context=max_context,
                    chunk=CHUNK,
                    **(forms or {}),
                )
        return made[key]

    return get
