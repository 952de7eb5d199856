"""Which operators, types and opsets each TensorRT version's ONNX parser takes: what `versions.json` has.

A device with an older TensorRT than the desktop's cannot be asked from there; the table can. Each of its
entries names its source, and what no source tells is told as such.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mla_runtime.engines.flavour import FLAVOURS, RTX, TENSORRT
from mla_runtime.errors import EngineError

Number = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a flavour; `known` is whether any source tells what its parser takes."""

    flavour: str
    number: Number
    opset: int | None
    known: bool
    sources: tuple[str, ...]

    @property
    def name(self) -> str:
        """Give it as people write it: `TensorRT 10.3`."""
        return f"{title(self.flavour)} {dotted(self.number)}"


@dataclass(frozen=True, slots=True)
class JetPack:
    """A JetPack, the TensorRT that it ships, and the card of the devices it is for."""

    name: str
    tensorrt: Number
    card: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Operators (`domain:name` beyond ONNX's own) that a flavour takes with some types from a version on.

    `new` is whether a source says that they came with that version; `complete`, that other types are refused.
    """

    flavour: str
    names: frozenset[str]
    since: Number
    types: frozenset[str]
    new: bool
    complete: bool
    instead: str | None
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """A rule that an operator's nodes must keep, in the words of limits.py, within a span of versions.

    `certain` is whether a source says that a node which does not keep it is refused.
    """

    flavour: str
    names: frozenset[str]
    since: Number
    until: Number | None
    rule: str
    says: str
    instead: str
    certain: bool
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All of `versions.json`; versions in rising order, entries and limits by flavour and operator."""

    sources: Mapping[str, str]
    versions: Mapping[str, tuple[Version, ...]]
    jetpacks: tuple[JetPack, ...]
    entries: Mapping[tuple[str, str], tuple[Entry, ...]]
    refused: Mapping[str, frozenset[str]]
    limits: Mapping[tuple[str, str], tuple[Limit, ...]]

    def version(self, flavour: str, number: Number) -> Version:
        """Give what is known of a version: its row, or the next older one's under its number."""
        rows = self.versions[flavour]
        row = max((row for row in rows if row.number <= number), key=lambda row: row.number, default=None)
        if row is None:
            return Version(flavour, number, None, False, ())
        return Version(flavour, number, row.opset if row.number == number else None, row.known, row.sources)

    def opset(self, version: Version) -> tuple[int, bool]:
        """Give the highest opset of a version that a source tells, and whether it is that version's own."""
        if version.opset is not None:
            return version.opset, True
        older = (row for row in self.versions[version.flavour] if row.number < version.number and row.opset)
        return max((row.opset or 0 for row in older), default=0), False

    def of(self, version: Version, operator: str) -> tuple[Entry, ...]:
        """Give the entries of an operator, those of later versions too."""
        return self.entries.get((version.flavour, operator), ())

    def limits_of(self, version: Version, operator: str) -> Iterator[Limit]:
        """Yield the limits of an operator in a version."""
        for limit in self.limits.get((version.flavour, operator), ()):
            if limit.since <= version.number and (limit.until is None or version.number < limit.until):
                yield limit

    def jetpacks_of(self, number: Number) -> tuple[str, ...]:
        """Give the JetPacks that ship a TensorRT."""
        return tuple(jetpack.name for jetpack in self.jetpacks if jetpack.tensorrt == number)


@functools.cache
def table() -> Table:
    """Read the table."""
    raw = json.loads(Path(__file__).with_name("versions.json").read_text(encoding="utf-8"))
    versions = {
        flavour: tuple(_version(flavour, row) for row in rows) for flavour, rows in raw["versions"].items()
    }
    jetpacks = tuple(
        JetPack(row["jetpack"], parsed(row["tensorrt"]), row["card"], tuple(row["sources"]))
        for row in raw["jetpacks"]
    )
    entries = _by_name(_entry(row, raw["types"]) for row in raw["operators"])
    refused = {row["flavour"]: frozenset(row["names"]) for row in raw["refused"]}
    limits = _by_name(_limit(row) for row in raw["limits"])
    return Table(raw["sources"], versions, jetpacks, entries, refused, limits)


def _version(flavour: str, row: Mapping[str, Any]) -> Version:
    known = row.get("known", True)
    return Version(flavour, parsed(row["version"]), row["opset"], known, tuple(row["sources"]))


Row = TypeVar("Row", Entry, Limit)


def _by_name(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[Row, ...]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for name in row.names:
            found.setdefault((row.flavour, name), []).append(row)
    return {key: tuple(those) for key, those in found.items()}


def _entry(row: Mapping[str, Any], types: Mapping[str, Sequence[str]]) -> Entry:
    named = types[row["types"]] if isinstance(row["types"], str) else row["types"]
    return Entry(
        flavour=row["flavour"],
        names=frozenset(row["names"]),
        since=parsed(row["from"]),
        types=frozenset(named),
        new=row.get("new", False),
        complete=row.get("complete", False),
        instead=row.get("instead"),
        sources=tuple(row["sources"]),
    )


def _limit(row: Mapping[str, Any]) -> Limit:
    return Limit(
        flavour=row["flavour"],
        names=frozenset(row["names"]),
        since=parsed(row.get("from", "0.0")),
        until=parsed(row["until"]) if "until" in row else None,
        rule=row["rule"],
        says=row["says"],
        instead=row["instead"],
        certain=row.get("certain", True),
        sources=tuple(row["sources"]),
    )


def parsed(text: str) -> Number:
    """Read a version's first two numbers: `10.3`, `10.3.0.30`; raises `EngineError` for other text."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?:[.\w+-]*)$", text.strip())
    if match is None:
        raise EngineError(f"{text!r} is no version of TensorRT; write it like 10.3")
    return int(match[1]), int(match[2])


def dotted(number: Number) -> str:
    """Write a version: `10.3`."""
    return ".".join(map(str, number))


def title(flavour: str) -> Literal["TensorRT", "TensorRT-RTX"]:
    """Give a flavour's name as people write it."""
    return "TensorRT-RTX" if flavour == RTX.name else "TensorRT"


def named(text: str) -> tuple[Version, ...]:
    """Give the versions that a name means: `jetpack6`, `jetpack6.2`, `tensorrt 10.3`, `tensorrt-rtx 1.7`.

    A JetPack's name without its second number means those of its JetPacks that this toolkit has engines for.
    """
    known = table()
    if match := re.fullmatch(r"jetpack\s*(\d+(?:\.\d+)?)", text.strip().lower()):
        wanted = match[1]
        found = {j.tensorrt for j in known.jetpacks if j.name == wanted or j.name.startswith(f"{wanted}.")}
        usable = {number for number in found if number >= TENSORRT.oldest} or found
        if not usable:
            names = ", ".join(jetpack.name for jetpack in known.jetpacks)
            raise EngineError(f"JetPack {wanted} is not in the table of versions; it has {names}")
        return tuple(known.version(TENSORRT.name, number) for number in sorted(usable))
    flavour, _, number = text.strip().partition(" ")
    if flavour not in FLAVOURS or not number:
        examples = "jetpack6, jetpack6.2, tensorrt 10.3 or tensorrt-rtx 1.7"
        raise EngineError(f"{text!r} is no version of TensorRT; write one like {examples}")
    return (known.version(flavour, parsed(number)),)
