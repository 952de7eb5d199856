"""The picture of a comparison: time of attention alone by context, a line a case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mla_export.attention.cases import label
from mla_export.charts import Axis, Chart, Series, lines

if TYPE_CHECKING:
    from mla_export.attention.measure import Measured
    from mla_graphs.baselines import Cache, Kind, Shape

# as many as a chart has colours for; the rest is in the table
SHOWN: tuple[tuple[Kind, Cache], ...] = (
    ("expanded", "float32"),
    ("mha", "float32"),
    ("gqa", "float32"),
    ("mla", "float32"),
    ("mla", "int8 latent"),
    ("gqa", "int8"),
    ("mqa", "float32"),
)


def step_times(name: str, shape: Shape, measured: Measured) -> Chart:
    """Draw milliseconds of attention alone in one layer by rows in the cache, both logarithmic."""
    series = []
    for kind, cache in SHOWN:
        points = [p for p in measured.points if (p.kind, p.cache) == (kind, cache)]
        named = label(kind, shape) + ("" if cache == "float32" else f", {cache}")
        times = [point.core_seconds * 1e3 for point in points]
        series.append(Series(named, [point.depth for point in points], times))
    depths = sorted({point.depth for point in measured.points})
    return lines(
        "attention",
        f"A step's attention alone, one layer of the shape of {name}, on {measured.backend}",
        series,
        Axis("tokens in the cache", log=True, ticks=depths, write=lambda value: f"{value:,.0f}"),
        Axis("ms", log=True),
    )
