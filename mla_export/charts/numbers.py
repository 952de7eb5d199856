"""Numbers as they stand beside ticks and bars, and in the words for those who do not see a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float) -> str:
    """Write three figures: 12,300; 0.25; 1.2e-07."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}" if rounded == int(rounded) else f"{rounded:.3g}"
    return f"{value:.1e}"


def powers(value: float) -> str:
    """Write a tick of a log axis: 10⁻³, 1, 10, 100, 10⁵."""
    if value <= 0:
        return ""
    exponent = math.log10(value)
    nearest = round(exponent)
    if abs(exponent - nearest) > 1e-6 or 0 <= nearest < 5:
        return short(value)
    return f"10{str(nearest).translate(SUPERSCRIPT)}"


def tokens(value: float) -> str:
    """Write a number of tokens as contexts are named: 4k, 128k, 1M; else as it is."""
    for limit, unit in ((2**20, "M"), (2**10, "k")):
        if value >= limit and value % limit == 0:
            return f"{value / limit:.0f}{unit}"
    return short(value)


def binary(value: float) -> str:
    """Write bytes: 512 B, 30.4 KiB, 4 GiB."""
    for limit, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}" if value < 1000 * limit else f"{value / limit:,.0f} {unit}"
    return f"{value:.3g} B"


def finite(value: float | None) -> bool:
    """Whether there is a value that can be drawn."""
    return value is not None and math.isfinite(value)


def span(values: Sequence[float]) -> str:
    """Say in words, for those who do not see the chart, between what the values lie."""
    return f"{short(min(values))} to {short(max(values))}"
