"""How results look on stdout: tables with units, the same width whether or not a terminal reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100


def console() -> Console:
    """Give a console on stdout: at most `WIDTH` columns, no colours that nobody asked for, and no markup.

    What is printed holds names of files and of models, in which `[red]` is not a colour.
    """
    terminal = Console(file=sys.stdout)
    width = min(terminal.width, WIDTH) if terminal.is_terminal else WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str | Text]], *, numbers: bool = True
) -> Table:
    """Make a table whose first column is text and whose others are `numbers`, or text too."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        made.add_column(name, justify="right" if numbers and i else "left")
    for row in rows:
        made.add_row(*row)
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
