"""How results look on stdout: tables with units, the same width whether or not a terminal reads them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100
GAP, EDGES = 3, 2  # columns that rich puts between two cells of a table, and around a row


class _Console(Console):
    """A console that leaves a reader who has gone to the command line, which has an exit code for it."""

    def on_broken_pipe(self) -> None:
        """Raise the error again: rich would end the program with 1, which says that a bundle failed."""
        raise BrokenPipeError


STYLES = {"pass": "green", "ambiguous": "yellow", "fail": "bold red", "skipped": "dim"}  # of verdicts


def console() -> Console:
    """Give a console on stdout: at most `WIDTH` columns, no colours that nobody asked for, and no markup.

    What is printed holds names of files and of models, in which `[red]` is not a colour.
    """
    terminal = Console(file=sys.stdout)
    asked = terminal.is_terminal or "COLUMNS" in os.environ
    width = min(terminal.width, WIDTH) if asked else WIDTH
    return _Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def table(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    numbers: bool = True,
    spare: Sequence[str] = (),
) -> Table:
    """Make a table whose first column is text and whose others are `numbers`, or text too.

    Numbers are never cut: where the console is too narrow, the columns `spare` go, in that order, then
    names and heads wrap. Of text, the last column wraps.
    """
    content = [tuple(row) for row in rows]
    kept = list(range(len(header)))
    for name in spare:
        widths = [max(cell_len(str(row[i])) for row in (header, *content)) for i in kept]
        if sum(widths) + GAP * (len(kept) - 1) + EDGES <= console().width:
            break
        kept.remove(header.index(name))
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i in kept:
        if numbers and i:
            widest = max((cell_len(str(row[i])) for row in content), default=0)
            made.add_column(header[i], justify="right", min_width=widest, overflow="fold")
        else:
            made.add_column(header[i], no_wrap=not numbers and i < len(header) - 1, overflow="fold")
    for row in content:
        made.add_row(*(row[i] for i in kept))
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Lay out names and what is known of them; what is long wraps under itself."""
    made = Table.grid(padding=(0, 1))
    made.add_column(no_wrap=True, min_width=16)
    made.add_column()
    for name, value in pairs:
        made.add_row(f"  {name}", value)
    return made


def print_json(value: Any) -> None:
    """Print one JSON document."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def count(value: float) -> str:
    """Write a number of parameters: 3.4 M, 15.7 B, 1.0 T."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.{1 if value < 100 * limit else 0}f} {unit}"
    return f"{value:.0f}"


def size(nbytes: float) -> str:
    """Write bytes in binary units: 30.4 KiB, 4.1 MiB."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= limit:
            return f"{nbytes / limit:.1f} {unit}"
    return f"{nbytes:.0f} B"
