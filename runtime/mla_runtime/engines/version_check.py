"""Whether a TensorRT version's parser takes a bundle's graphs: asked of the table, without that version."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mla_runtime.bundle import Bundle
from mla_runtime.engines import limits
from mla_runtime.engines.flavour import FLAVOURS
from mla_runtime.engines.node_types import Typed, typed_nodes
from mla_runtime.engines.onnx_nodes import read
from mla_runtime.engines.parts import part
from mla_runtime.engines.versions import Table, Version, dotted, named, table
from mla_runtime.manifest import PHASES, Phase

Verdict = Literal["builds", "uncertain", "refused"]
PORTABLE = "export with --target portable"
# not one of TensorRT's types; uint8 may be a network's input or output only (operators.md of 10.6 and 10.15)
_FOREIGN = {"uint8", "int16", "uint16", "uint32", "uint64", "string", "uint4"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a version does not take, or is not known to: `certain` tells these apart.

    `node` is the first of `count` nodes that it is said of, None where it is of the whole graph; `what`
    says it after the version's name, `instead` what to choose; `sources` are keys of the table's.
    """

    phase: Phase | None
    node: str | None
    operator: str | None
    count: int
    certain: bool
    what: str
    instead: str
    sources: tuple[str, ...]

    @property
    def part(self) -> str | None:
        """Part of the model that the node belongs to, like `layer 3, attention`."""
        return None if self.node is None else part(self.node)

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {**asdict(self), "part": self.part, "sources": [table().sources[key] for key in self.sources]}


@dataclass(frozen=True, slots=True)
class Report:
    """A bundle beside one version: all that was found, gravest first."""

    version: Version
    jetpacks: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def verdict(self) -> Verdict:
        """`builds` as far as the table tells; `uncertain` where no source tells; or `refused`."""
        if any(problem.certain for problem in self.problems):
            return "refused"
        return "uncertain" if self.problems else "builds"

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain JSON values."""
        return {
            "flavour": self.version.flavour,
            "version": dotted(self.version.number),
            "jetpacks": list(self.jetpacks),
            "verdict": self.verdict,
            "problems": [problem.as_json() for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graphs of a bundle: of nodes that differ in their names alone the first, and how many they are."""

    opset: int
    nodes: tuple[tuple[Phase, Typed, int], ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Graphs:
        """Read the graphs of a bundle; those that serve two phases, once. No weights are read."""
        files: dict[str, Phase] = {}
        for phase in PHASES:
            files.setdefault(bundle.graph(phase).file, phase)
        return cls.read({phase: bundle.paths[file] for file, phase in files.items()})

    @classmethod
    def read(cls, files: Mapping[Phase, Path]) -> Graphs:
        """Read ONNX files; raises `BundleError` for others. A model's layers leave few kinds of nodes."""
        opset = 0
        kinds: dict[object, list[tuple[Phase, Typed]]] = {}
        for phase, path in files.items():
            model = read(path)
            opset = max(opset, model.opset)
            for typed in typed_nodes(model):
                kinds.setdefault((phase, typed.kind), []).append((phase, typed))
        return cls(opset, tuple((*those[0], len(those)) for those in kinds.values()))


def check(bundle: Bundle | Graphs, version: Version) -> list[Problem]:
    """List what a version's parser does not take of a bundle, or is not known to take; gravest first."""
    graphs = bundle if isinstance(bundle, Graphs) else Graphs.of(bundle)
    oldest = FLAVOURS[version.flavour].oldest
    if version.number < oldest:
        what = f"it is older than {dotted(oldest)}, the oldest that this toolkit builds for"
        return [Problem(None, None, None, 1, True, what, "install a newer one", ())]
    if not version.known:
        newest = max(row.number for row in table().versions[version.flavour])
        what, instead = "no source tells what its parser takes", f"use {dotted(newest)} or later"
        return [Problem(None, None, None, 1, False, what, instead, ())]
    known = table()
    found = [*_opset(graphs, version, known)]
    for phase, typed, count in graphs.nodes:
        found += (replace(problem, count=count) for problem in problems_of(typed, version, phase))
    return sorted(_gathered(found), key=lambda problem: not problem.certain)


def report(bundle: Bundle | Graphs, target: str) -> Report:
    """Hold a bundle against what `target` names: jetpack6, jetpack6.2, tensorrt 10.3, tensorrt-rtx 1.7.

    Where a name means several versions, the gravest report is given. Raises `EngineError` for an
    unknown name.
    """
    graphs = bundle if isinstance(bundle, Graphs) else Graphs.of(bundle)
    order = {"refused": 0, "uncertain": 1, "builds": 2}
    return min((_report(graphs, version) for version in named(target)), key=lambda r: order[r.verdict])


def survey(bundle: Bundle | Graphs) -> tuple[Report, ...]:
    """Hold a bundle against every version of the table and of its JetPacks; TensorRT-RTX's come last."""
    graphs = bundle if isinstance(bundle, Graphs) else Graphs.of(bundle)
    known = table()
    numbers = {version.number for version in known.versions["tensorrt"]}
    shipped = {jetpack.tensorrt for jetpack in known.jetpacks}
    all_of_them = [known.version("tensorrt", number) for number in sorted(numbers | shipped)]
    return tuple(_report(graphs, version) for version in [*all_of_them, *known.versions["tensorrt-rtx"]])


def _report(graphs: Graphs, version: Version) -> Report:
    jetpacks = table().jetpacks_of(version.number) if version.flavour == "tensorrt" else ()
    return Report(version, jetpacks, tuple(check(graphs, version)))


def _opset(graphs: Graphs, version: Version, known: Table) -> Iterator[Problem]:
    highest, own = known.opset(version)
    if graphs.opset <= highest:
        return
    what = f"its documentation ends at {highest}" if own else f"no source tells of more than {highest}"
    text = f"the graphs have opset {graphs.opset}, and {what}; the parser does not look, and may take them"
    instead = "int4 weights need opset 21: export with --weights int8"
    yield Problem(None, None, None, 1, False, text, instead, ("importer-10.6", *version.sources))


def problems_of(typed: Typed, version: Version, phase: Phase | None = None) -> Iterator[Problem]:
    """Yield what a version does not take of one node, or is not known to take."""
    node = typed.node
    name = node.operator if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.operator}"
    for certain, what, instead, sources in _of_node(typed, name, version, table()):
        yield Problem(phase, node.name or None, node.operator, 1, certain, what, instead, sources)


_Found = tuple[bool, str, str, "tuple[str, ...]"]


def _of_node(typed: Typed, name: str, version: Version, known: Table) -> Iterator[_Found]:
    entries = known.of(version, name)
    there = [entry for entry in entries if entry.since <= version.number]
    if not there:
        yield _absent(name, version, known)
        return
    taken = frozenset().union(*(entry.types for entry in there))
    dtypes = {typed.data.dtype} | ({typed.outputs[0].dtype} if name in ("Cast", "CastLike") else set())
    for dtype in sorted(dtypes - taken - {None}, key=str):
        later = min((e.since for e in entries if dtype in e.types), default=None)
        certain = dtype in _FOREIGN or any(entry.complete for entry in there) or later is not None
        what = f"does not take {dtype} in {name}" if certain else f"is not known to take {dtype} in {name}"
        instead = next((entry.instead for entry in there if entry.instead), None)
        newer = None if later is None else f"use TensorRT {dotted(later)} or later"
        sources = tuple(itertools.chain.from_iterable(entry.sources for entry in there))
        yield certain, what, newer or instead or _of_type(dtype), sources
    for limit in known.limits_of(version, name):
        if not limits.keeps(typed, limit.rule):
            yield limit.certain, f"{limit.says} in {name}", limit.instead, limit.sources


def _absent(name: str, version: Version, known: Table) -> _Found:
    entries = known.of(version, name)
    if name in known.refused.get(version.flavour, ()):
        return True, f"has no {name}", PORTABLE, ()
    if ":" in name:
        domain, _, operator = name.partition(":")
        what = f"has no {operator}, which is not ONNX's own ({domain})"
        return True, what, PORTABLE, tuple(s for entry in entries for s in entry.sources)
    if new := next((entry for entry in entries if entry.new), None):
        what = f"has no {name}, which came with {dotted(new.since)}"
        return True, what, new.instead or PORTABLE, new.sources
    seen = f"; {dotted(min(entry.since for entry in entries))} has" if entries else ""
    what = f"is not known to have {name}{seen}"
    return False, what, PORTABLE, tuple(source for entry in entries for source in entry.sources)


def _of_type(dtype: str | None) -> str:
    return "export with --weights int8" if dtype == "int4" else PORTABLE


def _gathered(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Say of many nodes at once what is said of each."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.what, problem.instead), []).append(problem)
    for group in groups.values():
        count = sum(problem.count for problem in group)
        yield replace(group[0], count=count, sources=tuple(dict.fromkeys(group[0].sources)))
