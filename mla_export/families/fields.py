"""Strict reading of config.json: a key that is missing or of the wrong type is an error that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from mla_runtime.errors import ConfigError

_T = TypeVar("_T", bool, str)


class Fields:
    """The keys of one model's configuration.

    `absent` gives the keys that published configurations may leave out, with what leaving them out
    means for this family; every other key that is asked for must be there. A null counts as left out.
    """

    def __init__(self, values: Mapping[str, Any], absent: Mapping[str, Any], where: str = "config.json"):
        self.values = values
        self.absent = absent
        self.where = where

    def has(self, key: str) -> bool:
        """Tell whether the key is written and not null."""
        return self.values.get(key) is not None

    def error(self, key: str, problem: str) -> ConfigError:
        """Make the error of `key`; `problem` goes on from the key's name."""
        return ConfigError(f'{self.where}: "{key}" {problem}')

    def integer(self, key: str, minimum: int = 1) -> int:
        """Read an integer of at least `minimum`."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is {value!r}, which is not an integer")
        if value < minimum:
            raise self.error(key, f"is {value}, below its minimum of {minimum}")
        return value

    def integer_or_null(self, key: str) -> int | None:
        """Read a positive integer that may be null, which must then be written."""
        if key in self.values and self.values[key] is None:
            return None
        if key not in self.values:
            raise self.error(key, "is missing; write null where the model has none")
        return self.integer(key)

    def number(self, key: str, minimum: float | None = None) -> float:
        """Read a finite number: above zero, or of at least `minimum` where one is given."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, f"is {value!r}, which is not a finite number")
        if minimum is None and value <= 0:
            raise self.error(key, f"is {value}, which is not above zero")
        if minimum is not None and value < minimum:
            raise self.error(key, f"is {value}, below its minimum of {minimum:g}")
        return float(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """Read a list of `count` positive numbers."""
        values = self._get(key)
        if not isinstance(values, list) or len(values) != count:
            size = f"{len(values)} long" if isinstance(values, list) else repr(values)
            raise self.error(key, f"is {size}, but must be a list of {count} numbers (qk_rope_head_dim / 2)")
        item = Fields({key: None}, {}, self.where)
        result = []
        for value in values:
            item.values = {key: value}
            result.append(item.number(key))
        return tuple(result)

    def boolean(self, key: str) -> bool:
        """Read true or false."""
        return self._typed(key, bool, "true or false")

    def text(self, key: str) -> str:
        """Read a string."""
        return self._typed(key, str, "a string")

    def section(self, key: str) -> Fields | None:
        """Read an object, which may be absent."""
        if not self.has(key):
            return None
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.error(key, f"is {value!r}, which is not an object")
        return Fields(value, self.absent, f"{self.where}: {key}")

    def expect(self, key: str, value: object, why: str) -> None:
        """Refuse the model unless `key` is absent or `value`; `why` says what else it would mean."""
        if self.has(key) and self.values[key] != value:
            raise self.error(key, f"is {self.values[key]!r}, but must be {value!r}: {why}")

    def _get(self, key: str) -> Any:
        if self.has(key):
            return self.values[key]
        if key not in self.absent:
            raise self.error(
                key,
                "is missing; take the config.json that was published with the weights, nothing is guessed",
            )
        return self.absent[key]

    def _typed(self, key: str, kind: type[_T], words: str) -> _T:
        value = self._get(key)
        if not isinstance(value, kind):
            raise self.error(key, f"is {value!r}, which is not {words}")
        return value
