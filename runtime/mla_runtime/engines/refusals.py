"""What a TensorRT parser says when it refuses a graph, in our words: which node, why, what to choose.

The parser's own words are of its source code: assertions, layers, files. Which versions take what is asked
of the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_runtime.engines.node_types import Typed, typed_nodes
from mla_runtime.engines.onnx_nodes import read
from mla_runtime.engines.parts import part
from mla_runtime.engines.version_check import PORTABLE, problems_of
from mla_runtime.engines.versions import parsed, table
from mla_runtime.errors import BundleError, EngineError

_LONGEST = 160


@dataclass(frozen=True, slots=True)
class ParserError:
    """One error of a parser; `node` and `operator` are empty where it is of no node."""

    node: str
    operator: str
    description: str
    code: str


def errors_of(parser: Any) -> list[ParserError]:
    """Read the errors of a TensorRT `OnnxParser`."""
    errors = (parser.get_error(place) for place in range(parser.num_errors))
    return [ParserError(e.node_name(), e.node_operator(), e.desc(), e.code().name) for e in errors]


def refusal(path: Path, flavour: str, version: str, errors: Sequence[ParserError]) -> EngineError:
    """Give the error to raise for the graph `path` that `flavour` of `version` refused with `errors`."""
    start = f"{path}: {flavour} {version} refuses "
    if not errors:
        return EngineError(f"{start}it and does not say why; {_inspect(path)}")
    first, more = errors[0], len(errors) - 1
    where = part(first.node)
    node = f"{first.operator or 'a node'} {first.node!r}" + (f" ({where})" if where else "")
    said = said_by(first)
    text = f"{start}{node if first.node else 'it'}: {said}"
    if more:
        text += f"; and {more} more node{'s' if more > 1 else ''}"
    return EngineError(f"{text}; {_instead(path, flavour, version, first)}")


def said_by(error: ParserError) -> str:
    """Shorten a parser's description to what it says of the node."""
    text = error.description.split("\n[checkMacros.cpp")[0].strip()  # no GPU here: true, and not why
    if text == "false" or "Plugin not found" in text:
        return "its parser has no such operator"
    text = text.removeprefix("Invalid Node - ").removeprefix(error.node).strip()
    if match := re.search(r"Error Code \d+: [\w ]+ \((?P<said>.*?)(?:\.?\s+In \w+ at |\)$)", text, re.DOTALL):
        text = match["said"].strip().removeprefix(f"{error.node}: ")
        text = re.sub(r"^[\w./-]*: (?=[A-Z])", "", text)
    text = re.sub(r"^Assertion failed: (?:[^:]|::)*: ", "", text)
    if match := re.search(r'&& "(.*)"', text):
        text = match[1]
    if re.match(r"Assertion .* failed", text):
        text = "it does not take these shapes or types (an assertion of its own failed)"
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _instead(path: Path, flavour: str, version: str, error: ParserError) -> str:
    """Say what to choose: what the table knows of the node, or what helps in general."""
    typed = _node(path, error)
    if typed is not None:
        known = table().version(flavour, parsed(version))
        found = sorted(problems_of(typed, known), key=lambda problem: not problem.certain)
        if found:
            return found[0].instead
    if said_by(error) == "its parser has no such operator":
        return PORTABLE
    return f"TensorRT takes bundles of --target portable; {_inspect(path)}"


def _node(path: Path, error: ParserError) -> Typed | None:
    try:
        nodes = typed_nodes(read(path))
        return next((typed for typed in nodes if error.node and typed.node.name == error.node), None)
    except (BundleError, OSError):
        return None


def _inspect(path: Path) -> str:
    return f"mla-export inspect {path.parent} says which versions build it"
