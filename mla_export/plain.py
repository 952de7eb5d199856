"""Results as JSON has them."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """Give nested dicts and sequences as JSON's types, with null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
