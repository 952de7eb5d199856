"""Dataclasses out of the JSON that a command printed: every value by its type, extra keys left alone."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mla_runtime.errors import InputError

T = TypeVar("T")
MOST = 2**62  # of a whole number: what is larger becomes no float
NAMES = {int: "a whole number that can be", str: "a text", bool: "true or false", float: "a number"}


def unpack(kind: type[T], value: Any, where: str) -> T:
    """Make a `kind` of a JSON value; null stands for a float that is not finite.

    Raises InputError that begins with `where`, the place in the file, for what is of another type or missing.
    """
    return _as(kind, value, where)  # type: ignore[no-any-return]


def _as(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (only,) = (one for one in inner if one is not NoneType)
        return None if value is None else _as(only, value, where)
    if origin is Literal:
        return value if value in inner else _wrong(value, f"one of {', '.join(inner)}", where)
    if origin is tuple:
        if not isinstance(value, list):
            _wrong(value, "a list", where)
        return tuple(_as(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            _wrong(value, "an object", where)
        return {key: _as(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind):
        return _instance(kind, value, where)
    if kind is float:
        value = (
            math.nan
            if value is None
            else float(value)
            if type(value) is int and abs(value) <= MOST
            else value
        )
    if type(value) is not kind or (kind is int and abs(value) > MOST):
        _wrong(value, NAMES[kind], where)
    return value


def _instance(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _wrong(value, "an object", where)
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = _as(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is MISSING:
            raise InputError(f"{where}: {field.name!r} is missing; save the result again with --json")
    return kind(**found)


def _wrong(value: Any, wanted: str, where: str) -> Any:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise InputError(f"{where}: {shown} is not {wanted}; save the result again with --json")
