"""Strict reading of JSON from untrusted files: every value is asked for by type and by range."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mla_runtime.errors import BundleError, MlaError

JSON_CAP = 16_000_000
T = TypeVar("T")


def read_json(path: Path, error: type[MlaError] = BundleError, cap: int = JSON_CAP) -> dict[str, Any]:
    """Read the JSON object in `path`, at most `cap` bytes, as `parse_json` does.

    Raises `error`, naming the file, for one that cannot be read, is larger, or breaks a rule.
    """
    try:
        with path.open("rb") as file:
            data = file.read(cap + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror}); get the file again") from cause
    if len(data) > cap:
        raise error(f"{path}: larger than the {cap} bytes that it may have; it is not what its name says")
    return parse_json(data, str(path), error)


def parse_json(data: bytes, where: str, error: type[MlaError] = BundleError) -> dict[str, Any]:
    """Parse a JSON object of strangers: UTF-8, no key twice, no NaN or infinity, no half of a character.

    Raises `error` that begins with `where` and says, for malformed JSON, the line.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        if b"\\ud" in data.lower():  # an escaped half of a surrogate pair is a string that nothing can print
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not valid JSON ({cause}); get the file again") from cause
    if not isinstance(value, dict):
        raise error(f"{where}: holds a {type(value).__name__} where an object belongs; get the file again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} is given twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


class Field:
    """A JSON value and the place where it stands, for messages like `bundle.json: cache[3].dtype`."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def wrong(self, expected: str) -> BundleError:
        """Make the error that says what stands here instead of `expected`."""
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return BundleError(
            f"{self.where}: {shown} is not {expected}; get the bundle again or export it again"
        )

    def object(self, keys: set[str]) -> dict[str, Field]:
        """Take an object with exactly `keys`."""
        fields = self.mapping()
        if missing := sorted(keys - fields.keys()):
            raise BundleError(f"{self.where}: {missing[0]!r} is missing; export the bundle again")
        if unknown := sorted(fields.keys() - keys):
            raise BundleError(f"{self.where}: unknown key {unknown[0]!r}; export the bundle again")
        return fields

    def mapping(self) -> dict[str, Field]:
        """Take an object with any keys."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return {key: Field(value, f"{self.where}.{key}") for key, value in self.value.items()}

    def list(self, item: Callable[[Field], T]) -> tuple[T, ...]:
        """Take a list and read each of its entries with `item`."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return tuple(item(Field(value, f"{self.where}[{i}]")) for i, value in enumerate(self.value))

    def text(self) -> str:
        """Take a string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a string that is not empty")
        return self.value

    def one_of(self, *choices: str) -> str:
        """Take one of the strings `choices`."""
        if self.value not in choices:
            raise self.wrong("one of " + ", ".join(choices))
        return str(self.value)

    def integer(self, low: int, high: int = 2**62) -> int:
        """Take an integer in [low, high]."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"an integer in [{low}, {high}]")
        return self.value

    def number(self) -> float:
        """Take a finite number."""
        if type(self.value) not in (int, float) or not math.isfinite(self.value):
            raise self.wrong("a finite number")
        return float(self.value)

    def boolean(self) -> bool:
        """Take true or false."""
        if type(self.value) is not bool:
            raise self.wrong("true or false")
        return self.value

    def optional(self, item: Callable[[Field], T]) -> T | None:
        """Take null as None and anything else with `item`."""
        return None if self.value is None else item(self)
