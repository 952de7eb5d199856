"""One HTML page of results: the verdict first, then tables and charts; it refers to nothing outside itself.

Pure: results in (`results.py`), one string out. Whatever comes from a file or a bundle is text there.
"""

from __future__ import annotations

from pathlib import PurePath

from mla_export.page.comparison import comparison
from mla_export.page.html import document, element, missing, section
from mla_export.page.results import Results
from mla_export.page.speed import speed
from mla_export.page.style import css
from mla_export.page.verdict import banner


def page(results: Results, version: str) -> str:
    """Give the page; `version` is that of mla-export, which made it. Needs matplotlib."""
    compared = [one.model for one in results.comparisons]
    read = [PurePath(one.path).name for one in results.models]
    names = dict.fromkeys(compared or read or [one.label for one in results.benchmarks])
    title = f"mla-export report: {', '.join(names) or 'no results'}"
    parts = [element("h1", title), banner(results)]
    for number, found in enumerate(results.comparisons, 1):
        parts += comparison(found, f"c{number}")
    if not results.comparisons:
        parts.append(section("Comparison", missing(results.comparison_missing)))
    footer = element("footer", f"Made by mla-export {version}. Everything on this page is in this file.")
    return document(title, css(), *parts, *speed(results), footer)
