"""Checkpoints are made once a session and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.parity.witness import CASES, Witness


@pytest.fixture(autouse=True)
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
