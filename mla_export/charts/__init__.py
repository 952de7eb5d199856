"""Plots as SVG: to stand inside a page, or as a file of their own; readable on light and dark paper.

`lines`, `bars` and `histogram` give a `Chart`. Its `inline()` is an element for an HTML page whose style has
`colours.css()`; its `standalone()` is a whole file, with its own colours and background. Text stays text, no
chart refers to anything outside itself, and the same data gives the same bytes. Needs matplotlib (the extra
`report`), which is imported when something is drawn.
"""

from __future__ import annotations

from mla_export.charts.canvas import Axis, Limit
from mla_export.charts.histograms import histogram
from mla_export.charts.plots import Bars, Series, bars, lines
from mla_export.charts.svg import Chart

__all__ = ["Axis", "Bars", "Chart", "Limit", "Series", "bars", "histogram", "lines"]
