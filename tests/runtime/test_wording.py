"""Numbers in sentences."""

from __future__ import annotations

import pytest

from mla_runtime.wording import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (163_840, "163,840 rows")]
)
def test_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "row") == text
