"""Lines and bars: plain data in, a `Chart` out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import fill

from mla_export.charts.canvas import (
    CHARACTERS,
    FONT,
    Axis,
    Limit,
    canvas,
    draw_legend,
    draw_limits,
    finished,
    printable,
)
from mla_export.charts.colours import MARKS, SERIES
from mla_export.charts.numbers import finite, short, span
from mla_export.charts.svg import Chart

MARKERS = "os^Dv*Pd"
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\", "ooo")
FEWEST = 4  # categories that bars leave room for
MARKED = 12  # points of a line that carry its marker


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `y` by `x`. None and what is not finite leave a gap, as do 0 and less on a log axis.

    `look` chooses colour, dash and marker, alike in all charts (default: the series' place in its chart).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    look: int | None = None


@dataclass(frozen=True, slots=True)
class Bars:
    """One bar a category, in their order; None leaves one out."""

    name: str
    values: Sequence[float | None]


def lines(
    name: str, title: str, series: Sequence[Series], x: Axis, y: Axis, *, limits: Sequence[Limit] = ()
) -> Chart:
    """Draw series as lines that differ in colour, dash and marker. Raises ValueError without any point."""
    shown = [(one, _points(one, x, y)) for one in series]
    if y.log and not any(points for _, points in shown):  # an error of 0 throughout
        y = replace(y, log=False)
        shown = [(one, _points(one, x, y)) for one in series]
    if not any(points for _, points in shown):
        raise ValueError(f"chart {name}: there is no point to draw")
    with canvas(x, y) as (figure, axes):
        for place, (one, points) in enumerate(shown):
            number = place if one.look is None else one.look
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                xs,
                ys,
                color=MARKS[SERIES[number % len(SERIES)]],
                linestyle=DASHES[number % len(DASHES)],
                marker=MARKERS[number % len(MARKERS)],
                markevery=max(1, len(points) // MARKED),
                label=printable(one.name if points else f"{one.name} ({_nothing(one)})"),
            )
        if y.from_zero:
            axes.set_ylim(bottom=0)
        draw_limits(axes, limits)
        draw_legend(figure, axes, title)
        described = f"{y.label} by {x.label}. " + " ".join(
            f"{one.name}: {_told(points) if points else _nothing(one)}." for one, points in shown
        )
        return finished(figure, name, title, described, limits)


def bars(
    name: str,
    title: str,
    categories: Sequence[str],
    groups: Sequence[Bars],
    y: Axis,
    *,
    limits: Sequence[Limit] = (),
) -> Chart:
    """Draw groups of bars side by side at each category, with their values. Raises ValueError without any."""
    if not any(finite(value) for group in groups for value in group.values):
        raise ValueError(f"chart {name}: there is no bar to draw")
    width = 0.8 / len(groups)
    room = max(0, FEWEST - len(categories)) / 2  # few bars stay slim
    write = y.write or short
    with canvas(Axis("", ticks=range(len(categories))), y) as (figure, axes):
        for number, group in enumerate(groups):
            there = [(i, float(v)) for i, v in enumerate(group.values) if v is not None and finite(v)]
            drawn = axes.bar(
                [i - 0.4 + width * (number + 0.5) for i, _ in there],
                [value for _, value in there],
                width * 0.92,
                color=MARKS[SERIES[number % len(SERIES)]],
                hatch=HATCHES[number % len(HATCHES)],
                edgecolor=MARKS["paper"],
                linewidth=0,
                label=printable(group.name),
            )
            axes.bar_label(drawn, [write(value) for _, value in there], padding=2, fontsize=FONT - 1)
        across = max(8, CHARACTERS // len(categories) - 2)
        axes.set_xticks(range(len(categories)), [fill(printable(one), across) for one in categories])
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.12)
        axes.set_xlim(-0.5 - room, len(categories) - 0.5 + room)
        draw_limits(axes, limits)
        draw_legend(figure, axes, title)
        described = f"{y.label}. " + " ".join(
            f"{group.name}: "
            + ", ".join(
                f"{category} {write(value) if value is not None and finite(value) else 'none'}"
                for category, value in zip(categories, group.values, strict=True)
            )
            + "."
            for group in groups
        )
        return finished(figure, name, title, described, limits)


def _told(points: Sequence[tuple[float, float]]) -> str:
    values = [value for _, value in points if math.isfinite(value)]
    return f"{span(values)}, last {short(values[-1])}"


def _nothing(series: Series) -> str:
    return "0 throughout" if series.y and all(value == 0 for value in series.y) else "nothing to show"


def _points(series: Series, x: Axis, y: Axis) -> list[tuple[float, float]]:
    pairs = [
        (float(at), math.nan if v is None else float(v)) for at, v in zip(series.x, series.y, strict=True)
    ]
    shown = [
        (at, value if math.isfinite(value) and (value > 0 or not y.log) else math.nan)
        for at, value in pairs
        if math.isfinite(at) and (at > 0 or not x.log)
    ]
    return shown if any(math.isfinite(value) for _, value in shown) else []
