"""Buckets of rows: enough, not much too many, and never beyond the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mla_runtime.cache import bucket


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_a_bucket_holds_the_rows_and_few_more(rows: int, limit: int) -> None:
    rows = min(rows, limit)
    size = bucket(rows, limit)
    assert rows <= size <= limit
    assert size - rows <= max(64, rows // 4 + 64)


@given(st.integers(1, 100_000))
def test_growing_row_by_row_moves_few_rows(rows: int) -> None:
    moved, size = 0, 0
    while size < rows:
        moved, size = moved + size, bucket(size + 1, 10**6)
    assert moved <= 5 * rows
