"""Progress of long work, told to whoever listens: a bar on a terminal, lines elsewhere, nothing by default.

Library code opens a `task` and advances it; the command line listens with `reporting`. Everything is
written to stderr, so that stdout stays the result.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text

Unit = Literal["steps", "bytes"]
Advance = Callable[[int], None]

SHOWN_AFTER_SECONDS = 1.0
SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Shows tasks to a person."""

    def task(self, label: str, total: int | None, unit: Unit) -> AbstractContextManager[Advance]:
        """Open a task of `total` steps or bytes (None: unknown) and yield what advances it."""


_listening: ContextVar[Reporter | None] = ContextVar("mla_export_progress", default=None)


def _nothing(amount: int) -> None:
    del amount


def task(label: str, total: int | None = None, unit: Unit = "steps") -> AbstractContextManager[Advance]:
    """Open a task; the context yields a function that advances it by an amount."""
    reporter = _listening.get()
    return nullcontext(_nothing) if reporter is None else reporter.task(label, total, unit)


@contextmanager
def reporting(stream: IO[str] | None = None, *, quiet: bool = False) -> Iterator[None]:
    """Show the tasks that are opened inside, on `stream` (stderr): bars on a terminal, else lines."""
    out = sys.stderr if stream is None else stream
    if quiet:
        yield
        return
    token = _listening.set(_Bars(out) if out.isatty() else _Lines(out))
    try:
        yield
    finally:
        _listening.reset(token)


def _seconds(elapsed: float) -> str:
    return f"{elapsed:.1f} s" if elapsed < 60 else f"{int(elapsed // 60)} min {int(elapsed % 60)} s"


class _Lines:
    """A line when a task has taken a while, and one when it is done; none for what is done in a second."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    @contextmanager
    def task(self, label: str, total: int | None, unit: Unit) -> Iterator[Advance]:
        start = time.monotonic()
        due = start + SECONDS_BETWEEN_LINES
        done = 0

        def advance(amount: int) -> None:
            nonlocal done, due
            done += amount
            now = time.monotonic()
            if now >= due:
                due = now + SECONDS_BETWEEN_LINES
                share = f"{done / total:.0%}" if total else f"{done} {unit}"
                print(f"{label}: {share} after {_seconds(now - start)}", file=self._out, flush=True)

        yield advance
        elapsed = time.monotonic() - start
        if elapsed >= SHOWN_AFTER_SECONDS:
            print(f"{label}: {_seconds(elapsed)}", file=self._out, flush=True)


class _Bars:
    """A rich progress bar while a task runs; a line stays behind where it took more than a second."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._open: Progress | None = None  # one live display, however deep tasks nest

    @contextmanager
    def task(self, label: str, total: int | None, unit: Unit) -> Iterator[Advance]:
        bars = self._open
        if bars is not None:
            shown = bars.add_task(label, total=total, unit=unit)
            yield lambda amount: bars.advance(shown, amount)
            bars.remove_task(shown)
            return
        start = time.monotonic()
        with _columns(self._out) as outer:
            self._open = outer
            try:
                shown = outer.add_task(label, total=total, unit=unit)
                yield lambda amount: outer.advance(shown, amount)
            finally:
                self._open = None
        elapsed = time.monotonic() - start
        if elapsed >= SHOWN_AFTER_SECONDS:
            outer.console.print(f"{label}: {_seconds(elapsed)}", highlight=False)


def _columns(out: IO[str]) -> Progress:
    """Give a display with label, bar, amount (bytes or steps) and times; it vanishes when done."""
    from rich import progress as rich_progress
    from rich.console import Console

    in_bytes = rich_progress.DownloadColumn(binary_units=True)
    in_steps = rich_progress.MofNCompleteColumn()

    class Amount(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            return (in_bytes if task.fields["unit"] == "bytes" else in_steps).render(task)

    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        Amount(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=Console(file=out),
        transient=True,
    )
