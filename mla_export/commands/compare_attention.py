"""`mla-export compare-attention`: MHA, GQA, MQA and MLA at equal width, on the backends at hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mla_export.attention import papers
from mla_export.attention.cases import label, shape_of
from mla_export.attention.measure import Case, Measured, Point, measure
from mla_export.commands.tables import console, count, print_json, size, table
from mla_export.extras import need
from mla_export.one_file import check_file, write_file
from mla_runtime.errors import BackendError, InputError

if TYPE_CHECKING:
    from mla_export.attention.text import TextError
    from mla_graphs.baselines import Kind, Shape

# characters across: of the two columns that name a case, and of what stands behind them
NAME_COLUMNS, TIME_COLUMNS, ERROR_COLUMNS, TEXT_COLUMNS = 30, 15, 17, 26


def run(args: argparse.Namespace) -> int:
    """Measure all kinds at the width of `args.like`; print tables, and draw the plot if asked for."""
    need("onnx_ir", *(["matplotlib"] if args.svg else []))
    if args.text and not args.like:
        raise InputError("--text needs --like CHECKPOINT: whose layers read the text")
    if args.svg:
        check_file(Path(args.svg), force=args.force)
    name, shape = shape_of(args.like)
    measured, absent = _measure(args, shape)
    texts = _on_text(args, [one.backend for one in measured])
    if args.svg:
        from mla_export.attention.plot import step_times

        plot = step_times(name, shape, measured[0]).standalone()
        write_file(Path(args.svg), plot, force=args.force)
    if args.json:
        print_json(as_json(name, shape, measured, absent, texts))
    else:
        show(console(), name, shape, measured, absent, texts)
    return 0


def _measure(args: argparse.Namespace, shape: Shape) -> tuple[list[Measured], dict[str, str]]:
    """Measure on every backend that is there; give why each other one is not. Raises where none is."""
    measured, absent = [], {}
    for backend in dict.fromkeys(args.backends):
        try:
            measured.append(measure(shape, args.depths, backend, args.threads))
        except BackendError as error:
            absent[backend] = str(error)
    if not measured:
        raise BackendError("; ".join(absent.values()))
    return measured, absent


def _on_text(args: argparse.Namespace, backends: Sequence[str]) -> dict[str, list[TextError]]:
    if not args.text:
        return {}
    need("torch", "transformers", "tokenizers")
    from mla_export.attention.text import measure_text

    return {backend: measure_text(args.like, args.text, backend, args.threads) for backend in backends}


def as_json(
    name: str,
    shape: Shape,
    measured: Sequence[Measured],
    absent: dict[str, str],
    texts: dict[str, list[TextError]],
) -> dict[str, Any]:
    """Give everything as plain JSON values: elements, bytes, seconds, and shares of one."""
    kinds = dict.fromkeys(case.kind for case in measured[0].cases)
    return {
        "like": name,
        "shape": {**asdict(shape), "groups": shape.groups},
        "papers": {
            "elements_per_token_and_layer": {kind: papers.elements(shape, kind) for kind in kinds},
            "deepseek_v2_against_67b": {
                "said": papers.SAID,
                "elements": papers.elements_saved(),
                "bits": papers.bits_saved(),
            },
        },
        "backends": [asdict(one) for one in measured],
        "absent": absent,
        "text": {backend: [asdict(error) for error in errors] for backend, errors in texts.items()},
    }


def show(
    out: Console,
    name: str,
    shape: Shape,
    measured: Sequence[Measured],
    absent: dict[str, str],
    texts: dict[str, list[TextError]],
) -> None:
    """Print the tables."""
    heads = f"{shape.num_attention_heads} query heads, hidden size {shape.hidden_size}"
    out.print(f"{name}: one layer of attention, {heads}", style="bold", soft_wrap=True)
    out.print()
    out.print(_cache_table(shape, measured[0].cases))
    for line in _saved(measured[0].cases, shape):
        out.print(line)
    for one in measured:
        depths = sorted({point.depth for point in one.points})
        out.print()
        for core, title in ((True, "A step's attention alone"), (False, "With its projections")):
            for some in _fitting(depths, TIME_COLUMNS):
                out.print(_times(f"{title}, ms on {one.backend}", shape, one.points, some, core=core))
        out.print("×: times absorbed MLA with a float32 cache, at the same depth and in the same run")
        out.print()
        on_text = texts.get(one.backend, [])
        for some in _fitting(depths, ERROR_COLUMNS, TEXT_COLUMNS if on_text else 0):
            out.print(_errors(one.points, shape, some, on_text))
    if absent:
        out.print(table("Not measured", ("backend", "why"), sorted(absent.items()), numbers=False))


def _fitting(depths: Sequence[int], each: int, more: int = 0) -> Iterator[Sequence[int]]:
    """Give as many depths at a time as a table has room for, `each` columns of characters wide."""
    most = max(1, (console().width - NAME_COLUMNS - more) // each)
    for start in range(0, len(depths), most):
        yield depths[start : start + most]


def _cache_table(shape: Shape, cases: Sequence[Case]) -> Table:
    by_kind: dict[Kind, dict[str, Case]] = {}
    for case in cases:
        by_kind.setdefault(case.kind, {})[case.cache] = case
    rows = []
    for kind, caches in by_kind.items():
        exact, said = caches["float32"], papers.elements(shape, kind)
        mha = by_kind["mha"]["float32"].cache_bytes
        rows.append(
            (
                label(kind, shape),
                str(exact.groups),
                f"{exact.elements:,}",
                "–" if said is None else f"{said:,}",
                size(exact.cache_bytes),
                size(caches["int8"].cache_bytes),
                f"{exact.cache_bytes / mha:.1%}",
                count(exact.weights),
            )
        )
    header = ("attention", "kv heads", "elements", "by paper", "float32", "int8", "of MHA", "weights")
    title = "What a token leaves in the cache of a layer, and is multiplied with"
    return table(title, header, rows, spare=("of MHA", "weights"))


def _saved(cases: Sequence[Case], shape: Shape) -> Iterator[str]:
    """Say what MLA caches less than the others, measured, and what the paper says."""
    exact = {case.kind: case for case in cases if case.cache == "float32"}
    mla = exact["mla"].cache_bytes
    for kind in ("mha", "gqa", "mqa", "expanded"):
        share, other = mla / exact[kind].cache_bytes, label(kind, shape)
        if share < 1:
            yield f"MLA caches {1 - share:.1%} less than {other}"
        else:
            yield f"MLA caches {share:.2f} times as much as {other}"
    latent = next(case for case in cases if case.cache == "int8 latent")
    yield f"MLA with int8 latents and a float32 rotary key: {size(latent.cache_bytes)} a token"
    yield (
        f"DeepSeek-V2's paper: {papers.SAID:.1%} less than DeepSeek 67B, which has GQA and more layers: "
        f"{papers.elements_saved():.1%} by elements,"
    )
    yield f"{papers.bits_saved():.1%} with the 6 bits an element that it was deployed with, against 16"


def _times(title: str, shape: Shape, points: Sequence[Point], depths: Sequence[int], *, core: bool) -> Table:
    header = ["attention", "cache"]
    for depth in depths:
        header += [f"{depth:,}", "×"]
    rows = []
    for kind, cache in dict.fromkeys((point.kind, point.cache) for point in points):
        cells = [label(kind, shape), cache]
        for depth in depths:
            (at,) = (p for p in points if (p.kind, p.cache, p.depth) == (kind, cache, depth))
            seconds, ratio = (at.core_seconds, at.core_ratio) if core else (at.layer_seconds, at.layer_ratio)
            cells += [f"{seconds * 1e3:.2f}", f"{ratio:.2f}"]
        rows.append(cells)
    return table(title, header, rows)


def _errors(
    points: Sequence[Point], shape: Shape, depths: Sequence[int], texts: Sequence[TextError]
) -> Table:
    on_text = {(error.kind, error.cache): error for error in texts}
    header = ["attention", "cache", *(f"random, {depth:,}" for depth in depths)]
    header += ["text, mean", "worst layer"] if texts else []
    rows = []
    for kind, cache in dict.fromkeys((p.kind, p.cache) for p in points if p.error is not None):
        found = {p.depth: p.error for p in points if (p.kind, p.cache) == (kind, cache)}
        cells = [label(kind, shape), cache, *(f"{found[depth]:.2%}" for depth in depths)]
        if texts:
            error = on_text.get((kind, cache))
            cells += ["–", "–"] if error is None else _text_cells(error)
        rows.append(cells)
    title = "Error of the layer's output beside float32 rows, RMS of RMS"
    return table(title, header, rows)


def _text_cells(error: TextError) -> list[str]:
    return [f"{error.mean:.2%}", f"{max(error.layers):.2%} ({error.worst})"]
