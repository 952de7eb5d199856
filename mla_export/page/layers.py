"""Errors by layer on the page: the rows that each wrote, the first that parts, the operators inside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mla_export.charts import Axis, Series, lines
from mla_export.compare.result import Agreement, Rows, Side
from mla_export.page.html import Html, element, figure, missing, table
from mla_export.page.limits import limits_of
from mla_export.page.words import ROWS, error, place

KINDS: tuple[Rows, ...] = ("latent", "rope", "block")


def layers(found: Agreement, name: str) -> Iterator[Html]:
    """Give charts of the errors by layer, and tables of what is beyond what is allowed."""
    ran = [side for side in found.sides if side.layers]
    for kind in KINDS:
        yield _chart(ran, kind, f"{name}-{kind}")
    if ran:
        yield _worst(ran)
    yield from _parted(ran)
    notes = dict.fromkeys(side.layers_note for side in found.sides if side.layers_note)
    for note in notes:
        names = ", ".join(side.name for side in found.sides if side.layers_note == note)
        yield missing(f"{names}: {note}")
    for side in found.sides:
        yield from _bisection(side)


def _chart(ran: Sequence[Side], kind: Rows, name: str) -> Html:
    series, allowed = [], []
    for look, side in enumerate(ran):
        worst: dict[int, float] = {}
        for one in side.layers:
            if one.rows == kind and math.isfinite(one.relative):
                worst[one.layer] = max(one.relative, worst.get(one.layer, 0.0))
                allowed.append((one.allowed, side.name))
        if worst:
            numbers = sorted(worst)
            series.append(Series(side.name, numbers, [worst[number] for number in numbers], look))
    if not series:
        return missing(f"No side shows {ROWS[kind]}, so that there is no chart of their errors.")
    y = Axis("RMS error / reference's RMS", log=True)
    chart = lines(
        name,
        f"Error of {ROWS[kind]} by layer",
        series,
        Axis("layer", whole=True),
        y,
        limits=limits_of(allowed),
    )
    return figure(chart, "The worse of prompt and step: all tokens, or where it is judged the median one.")


def _worst(ran: Sequence[Side]) -> Html:
    """Give what of each side and kind of rows is nearest to what is allowed, or furthest beyond it."""
    rows = []
    for side in ran:
        for kind in KINDS:
            shown = [one for one in side.layers if one.rows == kind]
            if shown:
                one = max(shown, key=lambda one: one.relative / one.allowed if one.allowed else math.inf)
                where = f"layer {one.layer}, {one.phase}"
                rows.append((side.name, ROWS[kind], where, error(one.relative), error(one.allowed)))
    header = ("side", "rows", "nearest to its limit at", "error / RMS", "allowed")
    return table("Rows that are nearest to what is allowed", header, rows, texts=(0, 1, 2))


def _parted(ran: Sequence[Side]) -> Iterator[Html]:
    parted = [(side, side.parted) for side in ran if side.parted is not None]
    if ran and not parted:
        yield element("p", "No layer of any side is beyond what is allowed.")
    if parted:
        rows = [
            (
                side.name,
                place(first),
                error(first.relative),
                error(first.allowed),
                f"prompt {first.prompt + 1}, position {first.position:,}",
            )
            for side, first in parted
        ]
        header = ("side", "where", "error / RMS", "allowed", "furthest off at")
        yield table("The first layer that parts", header, rows, texts=(0, 1, 4))


def _bisection(side: Side) -> Iterator[Html]:
    found = side.bisection
    if found is None:
        return
    rows = [
        (one.name, one.op_type, error(one.relative), error(one.allowed), "beyond" if one.parted else "")
        for one in found.operators
    ]
    inside = "the head" if found.layer is None else f"layer {found.layer}"
    caption = f"Inside {inside} of {side.name}, in the {found.phase} graph"
    yield table(caption, ("operator", "kind", "error / RMS", "allowed", ""), rows, texts=(0, 1, 4))
    yield element("p", found.found)
