"""The tables, in Markdown, as docs/quality.md and docs/performance.md have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from forms.lanes import ALONE, LAYERS, Row
from forms.products import Product
from forms.times import FORMS, Time

_PRECISIONS = {"float16": "fp16, emulated", "bfloat16": "bf16, emulated"}
_CLOSEST = 3  # of all nodes; those of attention are shown too
_ATTENTION = ("attention.q_up", "attention.absorb_k", "attention", "attention.absorb_v", "attention.o_proj")


def of_errors(rows: Sequence[Row], products: Sequence[Product]) -> Iterator[str]:
    """Give the tables of errors, of rounded products, and of what came close to float16's limit."""
    text, *random = dict.fromkeys(row.model for row in rows)
    yield _errors([row for row in rows if row.model == text and row.precision != ALONE])
    yield _random([row for row in rows if row.model in random])
    yield _products(products)
    yield _alone([row for row in rows if row.precision == ALONE])
    for model in (text, *random):
        yield _headroom([row for row in rows if row.model == model and row.largest])


def of_times(rows: Sequence[Time]) -> str:
    """Give ms a step of the factored form, and the others' as ratios to it."""
    lines = []
    for row in rows:
        if row.form == FORMS[0]:
            case = (row.shape, row.weights, row.depth)
            forms = {x.form: x for x in rows if (x.shape, x.weights, x.depth) == case}
            ratios = [f"{forms[form].over_factored:.2f}" for form in FORMS[1:]]
            sizes = " / ".join(f"{forms[form].weights_bytes / 1e6:,.0f}" for form in FORMS)
            lines.append(
                [row.shape, row.weights, f"{row.depth:,}", f"{row.step_ms_median:.1f}", *ratios, sizes]
            )
    return _table(("shape", "weights", "depth", "factored ms", "merged", "expanded", "weights MB"), lines, 2)


def _errors(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        error = row.error
        moved = "" if error.rerouted is None else f"{error.rerouted:.2%}"
        others = "" if error.rms_of_others is None else f"{error.rms_of_others:.2e}"
        figures = [*_spread(row), f"{error.kl:.1e}", f"{error.same_top:.2%}", moved, others]
        lines.append([_precision(row), _form(row), row.graph, *figures, *_ratios(row)])
    header = (
        "precision", "form", "graph", "RMS", "median row", "worst row", "mean KL", "same top-1", "rerouted",
        "RMS of the others", "over expanded", "over layers",
    )  # fmt: skip
    return _table(header, lines, 3)


def _random(rows: Sequence[Row]) -> str:
    lines = [
        [row.model, _precision(row), _form(row), row.graph, *_spread(row), *_ratios(row)] for row in rows
    ]
    errors = ("RMS", "median row", "worst row", "over expanded", "over layers")
    return _table(("shape", "precision", "form", "graph", *errors), lines, 4)


def _alone(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        found = row.over_one_factor
        beside = "" if found is None else f"{found.mean:+.1e} ({found.low:+.1e} … {found.high:+.1e})"
        lines.append([row.graph, *_spread(row), f"{row.error.kl:.1e}", beside, f"{row.error.same_top:.2%}"])
    errors = ("RMS", "median row", "worst row", "mean KL", "more than one factor (95 %)", "same top-1")
    return _table(("in int4", *errors), lines, 1)


def _products(products: Sequence[Product]) -> str:
    lines = [
        [p.product, str(p.layer), f"{p.merged:.2%}", f"{p.factored:.2%}", f"{p.both:.2%}"] for p in products
    ]
    header = ("product", "layer", "the product in int4", "one factor in int4", "both factors in int4")
    return _table(header, sorted(lines), 1)


def _headroom(rows: Sequence[Row]) -> str:
    """Write a line a node's name with its largest share in each form: the closest ones and attention's."""
    ways = [{found.name: found.share for found in row.largest} for row in rows]
    names = dict.fromkeys([*(found.name for found in rows[0].largest[:_CLOSEST]), *_ATTENTION])
    lines = [[name, *(f"{way[name]:.3%}" if name in way else "" for way in ways)] for name in names]
    return _table((rows[0].model, *(f"{row.form}, {row.graph}" for row in rows)), lines, 1)


def _precision(row: Row) -> str:
    return _PRECISIONS.get(row.precision, row.precision)


def _form(row: Row) -> str:
    return "Hugging Face's layers" if row.form == LAYERS else row.form


def _spread(row: Row) -> list[str]:
    return [f"{value:.2e}" for value in (row.error.rms, row.error.median, row.error.worst)]


def _ratios(row: Row) -> list[str]:
    return ["" if value is None else f"{value:.2f}" for value in (row.over_expanded, row.over_layers)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """Write a table whose first `text` columns are text and whose others are numbers."""
    rule = [*["---"] * text, *["--:"] * (len(header) - text)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows]) + "\n"
