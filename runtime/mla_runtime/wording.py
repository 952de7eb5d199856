"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """Write a number of things whose plural ends in s: 1 token, 2 tokens, 163,840 tokens."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
