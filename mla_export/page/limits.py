"""Lines of what is allowed, in charts of several sides."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mla_export.charts import Limit

MOST = 3  # in one chart; the tables have all


def limits_of(values: Iterable[tuple[float, str]]) -> list[Limit]:
    """Give a line a value, with the names that share it; none where they would be many."""
    shared: dict[str, tuple[float, list[str]]] = {}
    for value, who in values:
        if math.isfinite(value) and value > 0:
            names = shared.setdefault(f"{value:.1e}", (value, []))[1]
            names += [] if who in names else [who]
    if len(shared) > MOST:
        return []
    return [Limit(value, f"allowed, {', '.join(names)}") for value, names in shared.values()]
