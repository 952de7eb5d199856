"""Histograms: how many samples fall where, on a linear or a log axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from mla_export.charts.canvas import Axis, Limit, canvas, draw_legend, finished, printable
from mla_export.charts.colours import MARKS, SERIES
from mla_export.charts.numbers import finite, short, span
from mla_export.charts.plots import DASHES
from mla_export.charts.svg import Chart

BINS = 40


def histogram(
    name: str,
    title: str,
    samples: Sequence[tuple[str, Sequence[float | None]]],
    x: Axis,
    *,
    limits: Sequence[Limit] = (),
) -> Chart:
    """Draw what share of the samples falls where, a stepped line a name. Raises ValueError without any.

    On a log axis a sample of 0 or less stands in the leftmost bin, and the axis' label says so.
    """
    there = [(one, [float(v) for v in values if v is not None and finite(v)]) for one, values in samples]
    every = [value for _, values in there for value in values]
    if not every:
        raise ValueError(f"chart {name}: there is no sample to draw")
    edges = _edges([value for value in every if value > 0] if x.log else every, x.log)
    label = f"{x.label} (0 at the left end)" if x.log and min(every) <= 0 else x.label
    with canvas(Axis(label, x.log, x.ticks, x.write), Axis("share, %")) as (figure, axes):
        for number, (one, values) in enumerate(there):
            axes.stairs(
                [100 * count / max(1, len(values)) for count in _counts(values, edges, x.log)],
                edges,
                color=MARKS[SERIES[number % len(SERIES)]],
                linestyle=DASHES[number % len(DASHES)],
                label=printable(one),
            )
        for limit in limits:
            axes.axvline(limit.value, color=MARKS["limit"], linestyle="dotted", label=printable(limit.words))
        axes.set_ylim(bottom=0)
        draw_legend(figure, axes, title)
        described = f"Distribution of {label}. " + " ".join(
            f"{one}: {span(values)}, median {short(median(values))}." for one, values in there if values
        )
        return finished(figure, name, title, described, limits)


def _edges(values: Sequence[float], log: bool) -> list[float]:
    """Give the edges of bins over the values, even on the axis' scale; around 1 where there is none."""
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    even = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    return [10**edge for edge in even] if log else even


def _counts(values: Sequence[float], edges: Sequence[float], log: bool) -> list[int]:
    counts = [0] * BINS
    first, last = (math.log10(edges[0]), math.log10(edges[-1])) if log else (edges[0], edges[-1])
    for value in values:
        at = math.log10(max(value, edges[0])) if log else value
        counts[min(max(int((at - first) / (last - first) * BINS), 0), BINS - 1)] += 1
    return counts
