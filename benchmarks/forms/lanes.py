"""Every way to compute a model that is compared, and its error: a row of the table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from forms import bundles, products, times
from forms.emulated import Emulated
from forms.errors import Error, Found, Yardstick

from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.paired import Difference, paired_bootstrap
from mla_export.passage import Lane
from mla_export.quality import text_windows
from mla_export.reference import Reference
from mla_export.rounding import Rounded, counterpart
from mla_graphs.geometry import Absorb
from mla_runtime.bundle import Bundle

HALVES: tuple[Literal["float16", "bfloat16"], ...] = ("float16", "bfloat16")
# in 16 bits the factored form alone has a prompt graph that differs; the others' graphs are one
EMULATED: tuple[tuple[Absorb, Literal["prompt", "step"]], ...] = (
    ("expanded", "step"),
    ("factored", "prompt"),
    ("factored", "step"),
    ("merged", "step"),
)
LIMIT = float(np.finfo(np.float16).max)
LAYERS = "layers"  # as a form: Hugging Face's
_LAYER = re.compile(r"^layers\.\d+\.")
ALONE = "int4, nothing else"
# what of attention is rounded to int4, and nothing else, by the form; the first of each as it is exported
ROUNDED: tuple[tuple[tuple[str, Absorb, tuple[str, ...]], ...], ...] = (
    (
        ("W_UQ", "factored", ("q_up.weight",)),
        ("W_UQ and W_UK", "factored", ("q_up.weight", "w_uk")),
        ("W_UQ·W_UK", "merged", ("q_up.weight",)),
    ),
    (
        ("W_O", "factored", ("o_proj.weight",)),
        ("W_UV and W_O", "factored", ("o_proj.weight", "w_uv")),
        ("W_UV·W_O", "merged", ("o_proj.weight",)),
    ),
)


@dataclass(frozen=True, slots=True)
class Largest:
    """How close any layer's node of a name came to float16's limit, as a share of it, and in which layer."""

    name: str
    node: str
    share: float


@dataclass(frozen=True, slots=True)
class Row:
    """One way to compute a model: precision, form and graph, its error, and that over the unabsorbed ones'.

    `over_expanded`: RMS error over that of the expanded form, computed alike; `over_layers`: over that of
    Hugging Face's layers in the same precision. `largest` is of float16 only.
    `over_one_factor`: by how much more mean KL a product or both factors in int4 cost than one factor.
    """

    model: str
    precision: str
    form: str
    graph: str
    error: Error
    over_expanded: float | None
    over_layers: float | None
    largest: list[Largest]
    over_one_factor: Difference | None = None


def of_text(
    checkpoint: Path, text: Path, tokens: int, threads: int, folder: Path
) -> tuple[list[Row], list[products.Product]]:
    """Compare all forms and precisions over a text; and what int4 costs attention's products alone."""
    source = Checkpoint.open(checkpoint)
    made = {
        (weights, form): Bundle.open(_exported(checkpoint, folder, weights, form))
        for weights in times.WEIGHTS
        for form in times.FORMS
    }
    read = text_windows(made["fp32", "factored"], text, tokens)
    whole = [window[:-1] for window in read if len(window) == len(read[0])]
    reference = Reference(source, made["fp32", "factored"].model.max_context)
    peers: dict[str, Lane] = {"fp32": "float32", **{half: half for half in HALVES}}
    for weights in ("int8", "int4"):
        plain = counterpart(made[weights, "factored"].manifest.precision)
        assert isinstance(plain, Rounded)
        peers[weights] = plain
    yardstick = Yardstick(reference, whole, list(peers.values()))
    name = checkpoint.resolve().name
    rows: list[Row] = []
    for weights in times.WEIGHTS:
        found = {}
        for form in ("expanded", "factored", "merged"):
            found[form, "prompt"] = yardstick.error(bundles.as_prompts(made[weights, form], whole, threads))
            found[form, "steps"] = yardstick.error(bundles.as_steps(made[weights, form], whole, threads))
        rows += _rows(name, weights, yardstick.peers[peers[weights]], found, {})
    forms = {form: Emulated(source, form) for form in times.FORMS}
    rows += _halves(name, forms, yardstick)
    rows += _rounded_alone(name, forms, yardstick)
    return rows, list(products.products(reference, 4, 32))


def of_random_ids(checkpoint: Path, name: str, tokens: int) -> list[Row]:
    """Compare the forms in 16 bits on a model of random weights."""
    source = Checkpoint.open(checkpoint)
    reference = Reference(source)
    ids = np.random.default_rng(0).integers(0, reference.geometry.vocab_size, tokens).tolist()
    forms = {form: Emulated(source, form, 2 * tokens) for form in times.FORMS}
    return _halves(name, forms, Yardstick(reference, [ids], HALVES))


def _halves(model: str, forms: Mapping[Absorb, Emulated], yardstick: Yardstick) -> list[Row]:
    rows: list[Row] = []
    for precision in HALVES:
        found = {way: forms[way[0]].run(yardstick.windows, way[1], precision) for way in EMULATED}
        errors = {way: yardstick.error(one) for way, one in found.items()}
        largest = {way: list(_largest(one)) for way, one in found.items()} if precision == "float16" else {}
        rows += _rows(model, precision, yardstick.peers[precision], errors, largest)
    return rows


def _rounded_alone(model: str, forms: Mapping[Absorb, Emulated], yardstick: Yardstick) -> Iterator[Row]:
    for matrices in ROUNDED:
        first = None
        for name, form, parameters in matrices:
            found = forms[form].run(yardstick.windows, "step", "float32", parameters)
            kl = yardstick.kl(found)
            beside = None if first is None else paired_bootstrap(kl, first)
            first = kl if first is None else first
            yield Row(model, ALONE, form, name, yardstick.error(found), None, None, [], beside)


def _rows(
    model: str,
    precision: str,
    layers: Error,
    found: Mapping[tuple[str, str], Error],
    largest: Mapping[Any, list[Largest]],
) -> Iterator[Row]:
    yield Row(model, precision, LAYERS, "", layers, None, None, [])
    for (form, graph), error in found.items():
        expanded = found.get(("expanded", graph)) or found["expanded", "step"]  # emulated in one way only
        over = None if form == "expanded" else error.rms / expanded.rms
        row = Row(model, precision, form, graph, error, over, error.rms / layers.rms, [])
        yield replace(row, largest=largest.get((form, graph), []))


def _largest(found: Found) -> Iterator[Largest]:
    by_name: dict[str, tuple[float, str]] = {}
    for node, value in found.largest.items():
        name = _LAYER.sub("", node)
        by_name[name] = max(by_name.get(name, (0.0, "")), (value, node))
    for name, (value, node) in sorted(by_name.items(), key=lambda entry: -entry[1][0]):
        if value:
            yield Largest(name, node, value / LIMIT)


def _exported(checkpoint: Path, folder: Path, weights: str, form: Absorb) -> Path:
    out = folder / f"{checkpoint.resolve().name}.{weights}.{form}"
    return out if out.exists() else export(checkpoint, out, absorb=form, **times.WEIGHTS[weights])
