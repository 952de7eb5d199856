"""`bundle.json`, format 1: what a bundle says about itself, as frozen dataclasses.

The runtime reads a flat table of tensors from here; it never sees the model's geometry.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mla_runtime.errors import BundleError
from mla_runtime.fields import Field

FORMAT = 1
Dim = int | str
Phase = Literal["step", "prompt"]
PHASES: tuple[Phase, ...] = ("step", "prompt")
FLOATS = ("float32", "float16")
ROWS = (*FLOATS, "int8", "uint8")  # what a cache may hold
WEIGHTS = (*FLOATS, "int8", "int4")
METHODS = ("searched", "calibrated")  # ways to round weights
MAX_RANK = 8
MAX_TENSORS = 1_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the graphs: name, numpy dtype name, shape in integers and symbols."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """One cache tensor: `past` [B, T, *row] is shown to a graph, `present` [B, S, *row] comes back."""

    layer: int
    kind: str
    holds: str
    past: str
    present: str
    dtype: str
    row: tuple[int, ...]
    row_format: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: one token of one sequence."""
        return math.prod(self.row) * int(np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph's file and, for the prompt graph, the most new tokens that a call should have."""

    file: str
    chunk: int | None


@dataclass(frozen=True, slots=True)
class Precision:
    """Types of activations, of weights, and of the latent and rotary rows of the cache.

    `head` is how the output projection is stored, `group` how many int8 or int4 weights share a scale,
    `method` how they were rounded; the latter two are None for weights in floats. `activations` is what
    weights are multiplied with: `compute`, or int8 in the same groups.
    """

    compute: str
    weights: str
    head: str
    group: int | None
    method: str | None
    activations: str
    cache: str
    rope: str

    @property
    def words(self) -> str:
        """Say it in words, like `float32, calibrated int4 weights in groups of 32, head int8, cache int8`."""
        parts = [self.compute]
        if self.weights != self.compute:
            kind = f"calibrated {self.weights}" if self.method == "calibrated" else self.weights
            parts.append(f"{kind} weights" + (f" in groups of {self.group}" if self.group else ""))
        if self.head != self.weights:
            parts.append(f"head {self.head}")
        if self.cache != self.compute:
            parts.append(f"cache {self.cache}" + (" with rotary keys" if self.rope == self.cache else ""))
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the model is called and how large it is."""

    name: str
    family: str
    layers: int
    vocab_size: int
    max_context: int
    parameters: int


@dataclass(frozen=True, slots=True)
class TextFiles:
    """Tokenizer and chat template files, the special tokens' text, and the ids that begin and end a text."""

    tokenizer: str | None
    chat_template: str | None
    tokens: Mapping[str, str]
    bos_id: int | None
    add_bos: bool
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of a file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The file that weights were calibrated with, by its SHA-256, and how many of its tokens were taken."""

    sha256: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Canary:
    """Ids of a prompt and of steps, and the top (id, logit) pairs after the prompt and after each step."""

    prompt_ids: tuple[int, ...]
    step_ids: tuple[int, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of `bundle.json`."""

    generator: Mapping[str, str]
    model: ModelInfo
    target: str
    opset: int
    absorb: str
    precision: Precision
    graphs: Mapping[str, Graph]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    cache: tuple[CacheTensor, ...]
    text: TextFiles
    source: Mapping[str, str]
    calibration: Calibration | None
    canary: Canary | None
    files: Mapping[str, FileEntry]


def digest(raw: Mapping[str, Any]) -> str:
    """Hash a manifest's content, without its own `sha256` entry, in one canonical spelling of JSON.

    It is what finds a flipped byte in `bundle.json` itself, which no other file's hash covers.
    """
    content = {key: value for key, value in raw.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(raw: Mapping[str, Any], where: str) -> Manifest:
    """Read and check the manifest `raw`; `where` names its file in messages.

    Raises `BundleError` for another format, missing or unknown keys, and every value out of range.
    """
    version = raw.get("format")
    if type(version) is not int or version < 1:
        raise BundleError(
            f"{where}: format is {version!r}, not a format number; this is not a bundle of mla-export"
        )
    if version > FORMAT:
        msg = (
            f"{where}: format {version}, newer than {FORMAT}, the newest known here; "
            "upgrade mla-export to run it"
        )
        raise BundleError(msg)
    required = {
        *("format", "generator", "model", "target", "opset", "absorb", "precision", "graphs"),
        *("inputs", "outputs", "cache", "text", "source", "calibration", "canary", "files", "sha256"),
    }
    top = Field(raw, where).object(required)
    if top["sha256"].value != digest(raw):
        raise BundleError(
            f"{where}: its content does not match its own sha256; it is damaged, get the bundle again"
        )
    model = _model(top["model"])
    return Manifest(
        generator=_strings(top["generator"]),
        model=model,
        target=top["target"].text(),
        opset=top["opset"].integer(1, 1000),
        absorb=top["absorb"].one_of("factored", "merged", "expanded"),
        precision=_precision(top["precision"]),
        graphs=_graphs(top["graphs"]),
        inputs=top["inputs"].list(_tensor),
        outputs=top["outputs"].list(_tensor),
        cache=_cache(top["cache"], model.layers),
        text=_text(top["text"], model.vocab_size),
        source=_strings(top["source"]),
        calibration=top["calibration"].optional(_calibration),
        canary=top["canary"].optional(lambda field: _canary(field, model)),
        files={name: _file(field) for name, field in top["files"].mapping().items()},
    )


def _strings(field: Field) -> dict[str, str]:
    return {key: value.text() for key, value in field.mapping().items()}


def _precision(field: Field) -> Precision:
    f = field.object({"compute", "weights", "head", "group", "method", "activations", "cache", "rope"})
    return Precision(
        compute=f["compute"].one_of(*FLOATS),
        weights=f["weights"].one_of(*WEIGHTS),
        head=f["head"].one_of(*WEIGHTS),
        group=f["group"].optional(lambda item: item.integer(1, 2**31)),
        method=f["method"].optional(lambda item: item.one_of(*METHODS)),
        activations=f["activations"].one_of(*ROWS),
        cache=f["cache"].one_of(*ROWS),
        rope=f["rope"].one_of(*ROWS),
    )


def _model(field: Field) -> ModelInfo:
    # The geometry is for people and for `inspect`; nothing here depends on it.
    keys = {"name", "family", "layers", "vocab_size", "max_context", "parameters", "geometry"}
    f = field.object(keys)
    f["geometry"].mapping()
    return ModelInfo(
        name=f["name"].text(),
        family=f["family"].text(),
        layers=f["layers"].integer(1, 100_000),
        vocab_size=f["vocab_size"].integer(1, 2**31),
        max_context=f["max_context"].integer(1, 2**31),
        parameters=f["parameters"].integer(1),
    )


def _graphs(field: Field) -> dict[str, Graph]:
    f = field.object({"step", "prompt"})
    step = f["step"].object({"file"})
    prompt = f["prompt"].object({"file", "chunk"})
    return {
        "step": Graph(step["file"].text(), None),
        "prompt": Graph(prompt["file"].text(), prompt["chunk"].integer(1, 2**20)),
    }


def _dim(field: Field) -> Dim:
    return field.text() if isinstance(field.value, str) else field.integer(1, 2**31)


def _shape(field: Field) -> tuple[Dim, ...]:
    shape = field.list(_dim)
    if len(shape) > MAX_RANK:
        raise field.wrong(f"a shape of at most {MAX_RANK} dimensions")
    return shape


def _tensor(field: Field) -> Tensor:
    f = field.object({"name", "dtype", "shape"})
    return Tensor(f["name"].text(), f["dtype"].one_of("int64", *FLOATS), _shape(f["shape"]))


def _cache(field: Field, layers: int) -> tuple[CacheTensor, ...]:
    tensors = field.list(lambda item: _cache_tensor(item, layers))
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise field.wrong(f"a list of 1 to {MAX_TENSORS} cache tensors")
    seen: set[str] = set()
    for name in (name for tensor in tensors for name in (tensor.past, tensor.present)):
        if name in seen:
            raise BundleError(f"{field.where}: the name {name!r} is given twice; export the bundle again")
        seen.add(name)
    return tensors


def _cache_tensor(field: Field, layers: int) -> CacheTensor:
    f = field.object({"layer", "kind", "holds", "past", "present", "dtype", "row", "row_format"})
    row = tuple(dim for dim in _shape(f["row"]) if isinstance(dim, int))
    if len(row) != len(f["row"].value) or len(row) > MAX_RANK - 2:
        raise f["row"].wrong(f"a list of at most {MAX_RANK - 2} integers")
    return CacheTensor(
        layer=f["layer"].integer(0, layers - 1),
        kind=f["kind"].one_of("append"),
        holds=f["holds"].text(),
        past=f["past"].text(),
        present=f["present"].text(),
        dtype=f["dtype"].one_of(*ROWS),
        row=row,
        row_format=f["row_format"].text(),
    )


def _text(field: Field, vocab: int) -> TextFiles:
    f = field.object({"tokenizer", "chat_template", "tokens", "bos_id", "add_bos", "stop_ids"})
    add_bos = f["add_bos"].boolean()
    bos_id = f["bos_id"].optional(lambda item: item.integer(0, vocab - 1))
    if add_bos and bos_id is None:
        raise f["add_bos"].wrong("false, which it must be without a bos_id")
    return TextFiles(
        tokenizer=f["tokenizer"].optional(Field.text),
        chat_template=f["chat_template"].optional(Field.text),
        tokens=_strings(f["tokens"]),
        bos_id=bos_id,
        add_bos=add_bos,
        stop_ids=f["stop_ids"].list(lambda item: item.integer(0, vocab - 1)),
    )


def _canary(field: Field, model: ModelInfo) -> Canary:
    f = field.object({"prompt_ids", "step_ids", "top"})

    def token(item: Field) -> int:
        return item.integer(0, model.vocab_size - 1)

    def pair(item: Field) -> tuple[int, float]:
        both = item.list(lambda entry: entry)
        if len(both) != 2:
            raise item.wrong("a pair of id and logit")
        return token(both[0]), both[1].number()

    def entry(item: Field) -> tuple[tuple[int, float], ...]:
        pairs = item.list(pair)
        if not pairs:
            raise item.wrong("a list of at least one pair of id and logit")
        return pairs

    canary = Canary(f["prompt_ids"].list(token), f["step_ids"].list(token), f["top"].list(entry))
    if not canary.prompt_ids:
        raise field.wrong("a canary with prompt ids")
    if len(canary.top) != 1 + len(canary.step_ids):
        raise field.wrong("a canary with expected logits after the prompt and after each step")
    if len(canary.prompt_ids) + len(canary.step_ids) > model.max_context:
        raise field.wrong(f"a canary that fits in max_context = {model.max_context}")
    return canary


def _calibration(field: Field) -> Calibration:
    f = field.object({"sha256", "tokens"})
    return Calibration(_sha256(f["sha256"]), f["tokens"].integer(1))


def _file(field: Field) -> FileEntry:
    f = field.object({"size", "sha256"})
    return FileEntry(f["size"].integer(0), _sha256(f["sha256"]))


def _sha256(field: Field) -> str:
    if not re.fullmatch("[0-9a-f]{64}", field.text()):
        raise field.wrong("64 lower-case hexadecimal digits")
    return str(field.value)
