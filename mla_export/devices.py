"""Devices and their figures: memory, bandwidth, dense matrix rates, and where each figure is from.

The table is `devices.json` beside this file. A user's own file has the same form; it may
leave `sources` out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from mla_graphs.geometry import Float
from mla_runtime.errors import ConfigError
from mla_runtime.fields import parse_json, read_json

DeviceClass = Literal["cpu", "jetson", "geforce", "datacenter", "gpu"]
Seen = Literal["text", "quoted", "derived", "assumed", "absent"]

CLASSES: tuple[str, ...] = get_args(DeviceClass)
SEEN: tuple[str, ...] = get_args(Seen)
FIGURES = ("memory_gib", "reserved_gib", "bandwidth_gb_s", "float_tflops", "int8_tops")
ALL = "all"
_KEYS = {"name", "title", "class", *FIGURES}
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_FIX = "correct the file; docs/commands.md says what belongs there"


@dataclass(frozen=True, slots=True)
class Device:
    """What a roofline knows of a device; bytes, bytes a second and operations a second.

    A multiplication with its addition is two operations. `int8_rate` is None where no figure is known: what
    would use it is computed at `float_rate`. `sources` says of each figure how it was seen and from where.
    """

    name: str
    title: str
    kind: DeviceClass
    memory: int
    reserved: int
    bandwidth: float
    float_rate: float
    int8_rate: float | None
    sources: Mapping[str, Mapping[str, str]]

    @property
    def usable(self) -> int:
        """Bytes that a model may take: all but what the system keeps."""
        return self.memory - self.reserved

    @property
    def floats(self) -> Float:
        """What is not in integers is stored and computed as: float32 on processors, float16 elsewhere."""
        return "float32" if self.kind == "cpu" else "float16"


def table() -> tuple[Device, ...]:
    """Give the devices of the package, in the order of the file."""
    data = (files("mla_export") / "devices.json").read_bytes()
    return _devices(parse_json(data, "devices.json", ConfigError), "devices.json")


def choose(wanted: Sequence[str]) -> tuple[Device, ...]:
    """Give the devices of these names, of files that end in .json, or `all` of the table; each once.

    Raises `ConfigError` for an unknown name, with names that are like it, and for a file that is not as it
    should be.
    """
    known = {device.name: device for device in table()}
    chosen: dict[str, Device] = {}
    for name in wanted:
        if name == ALL:
            chosen |= known
        elif name.endswith(".json"):
            path = Path(name)
            chosen |= {device.name: device for device in _devices(read_json(path, ConfigError), str(path))}
        elif name in known:
            chosen[name] = known[name]
        else:
            raise ConfigError(_unknown(name, list(known)))
    return tuple(chosen.values())


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    near = near or [other for other in known if name and name in other]
    hint = f"near it: {', '.join(near)}" if near else f"known: {', '.join(known)}"
    return f"device {name!r} is not in the table ({hint}); give one of them, all, or a .json file of your own"


def _devices(content: Mapping[str, Any], where: str) -> tuple[Device, ...]:
    entries = content.get("devices")
    if not isinstance(entries, list) or not entries or set(content) - {"about", "devices"}:
        raise ConfigError(f'{where}: is not {{"devices": [one or more of them]}}; {_FIX}')
    devices = tuple(_device(entry, f"{where}: devices[{i}]") for i, entry in enumerate(entries))
    names = [device.name for device in devices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: {twice[0]!r} is there twice; {_FIX}")
    return devices


def _device(entry: Any, where: str) -> Device:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: is not an object; {_FIX}")
    if missing := sorted(_KEYS - entry.keys()):
        raise ConfigError(f"{where}: {missing[0]!r} is missing; {_FIX}")
    if unknown := sorted(entry.keys() - _KEYS - {"sources"}):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; {_FIX}")
    name, kind = entry["name"], entry["class"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == ALL or name.endswith(".json"):
        raise ConfigError(f"{where}.name: {name!r} is not a name like rtx-4090; {_FIX}")
    if kind not in CLASSES:
        raise ConfigError(f"{where}.class: {kind!r} is not one of {', '.join(CLASSES)}; {_FIX}")
    if not isinstance(entry["title"], str) or not entry["title"]:
        raise ConfigError(f"{where}.title: {entry['title']!r} is not a string that is not empty; {_FIX}")
    figures = {figure: _figure(entry[figure], figure, where) for figure in FIGURES if figure != "int8_tops"}
    if figures["reserved_gib"] >= figures["memory_gib"]:
        raise ConfigError(
            f"{where}.reserved_gib: {figures['reserved_gib']:g} is not less than memory_gib "
            f"{figures['memory_gib']:g}; {_FIX}"
        )
    int8 = entry["int8_tops"]
    return Device(
        name=name,
        title=entry["title"],
        kind=kind,
        memory=int(figures["memory_gib"] * 2**30),
        reserved=int(figures["reserved_gib"] * 2**30),
        bandwidth=figures["bandwidth_gb_s"] * 1e9,
        float_rate=figures["float_tflops"] * 1e12,
        int8_rate=None if int8 is None else _figure(int8, "int8_tops", where) * 1e12,
        sources=_sources(entry.get("sources", {}), where),
    )


def _figure(value: Any, name: str, where: str) -> float:
    low = 0 if name == "reserved_gib" else 1e-6
    if type(value) not in (int, float) or not low <= value <= 1e9:  # NaN is in no range
        raise ConfigError(f"{where}.{name}: {repr(value)[:40]} is not a number of {low:g} to 1e9; {_FIX}")
    return float(value)


def _sources(value: Any, where: str) -> dict[str, dict[str, str]]:
    if not isinstance(value, dict) or value.keys() - set(FIGURES):
        raise ConfigError(f"{where}.sources: is not an object of figures; {_FIX}")
    for figure, source in value.items():
        fine = isinstance(source, dict) and source.keys() == {"seen", "from"}
        if not fine or source["seen"] not in SEEN or not isinstance(source["from"], str):
            seen = ", ".join(SEEN)
            raise ConfigError(f'{where}.sources.{figure}: is not {{"seen": {seen}, "from": text}}; {_FIX}')
    return value
