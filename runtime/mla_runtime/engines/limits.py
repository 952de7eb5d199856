"""The rules of `versions.json`: what is asked of a node beyond its operator and its types.

A rule that cannot be decided from a file is kept: the parser will say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mla_runtime.engines.node_types import Typed
from mla_runtime.engines.onnx_nodes import Value


def keeps(typed: Typed, rule: str) -> bool:
    """Whether a node keeps a rule, like `constant input 1` or `attribute sorted 1`."""
    for start, holds in _RULES.items():
        if rule.startswith(f"{start} "):
            return holds(typed, rule[len(start) :].split())
    raise ValueError(f"unknown rule {rule!r}")


def _input(typed: Typed, place: int) -> Value | None:
    return typed.inputs[place] if place < len(typed.inputs) else None


def _without(typed: Typed, words: list[str]) -> bool:
    return words[0] not in typed.node.attributes


def _attribute(typed: Typed, words: list[str]) -> bool:
    value = typed.node.attributes.get(words[0])
    return value is None or str(value) == words[1]


def _constant(typed: Typed, words: list[str]) -> bool:
    value = _input(typed, int(words[0]))
    return value is None or value.constant


def _static(typed: Typed, words: list[str]) -> bool:
    value = _input(typed, int(words[0]))
    return value is None or value.shape is None or not any(isinstance(dim, str) for dim in value.shape)


def _zero(typed: Typed, words: list[str]) -> bool:
    value = _input(typed, int(words[0]))
    return value is None or value.data is None or not any(value.data)


def _rank(typed: Typed, words: list[str]) -> bool:
    value = _input(typed, int(words[0]))
    return value is None or value.shape is None or len(value.shape) == int(words[1])


def _like(typed: Typed, words: list[str]) -> bool:
    values = (_input(typed, int(word)) for word in words)
    first, second = (value and value.shape for value in values)
    return first is None or second is None or first == second


def _block_rank(typed: Typed, words: list[str]) -> bool:
    return not typed.node.attributes.get("block_size") or _rank(typed, ["0", words[0]])


def _block_type(typed: Typed, words: list[str]) -> bool:
    return not typed.node.attributes.get("block_size") or typed.data.dtype in (None, words[0])


_RULES: Mapping[str, Callable[[Typed, list[str]], bool]] = {
    "no attribute": _without,
    "attribute": _attribute,
    "constant input": _constant,
    "static input": _static,
    "zero input": _zero,
    "rank input": _rank,
    "like inputs": _like,
    "blocks of rank": _block_rank,
    "blocks of": _block_type,
}
