"""Progress: silent unless someone listens, lines where there is no terminal, and never on stdout."""

from __future__ import annotations

import io

import pytest

from mla_export import progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nobody_listens_by_default(capsys: pytest.CaptureFixture[str]):
    with progress.task("Hashing", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_quiet_listens_to_nothing(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out, quiet=True), progress.task("Hashing", 10) as advance:
        clock.now = 100
        advance(10)
    assert out.getvalue() == ""


def test_what_takes_under_a_second_is_not_mentioned(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out), progress.task("Hashing", 10) as advance:
        clock.now = 0.9
        advance(10)
    assert out.getvalue() == ""


def test_lines_without_a_terminal(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out), progress.task("Hashing", 10, "bytes") as advance:
        for clock.now in (5, 11, 12, 75):
            advance(2)
    assert out.getvalue().splitlines() == [
        "Hashing: 40% after 11.0 s",
        "Hashing: 80% after 1 min 15 s",
        "Hashing: 1 min 15 s",
    ]


def test_unknown_totals_are_counted(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out), progress.task("Decoding") as advance:
        clock.now = 11
        advance(3)
    assert out.getvalue().splitlines()[0] == "Decoding: 3 steps after 11.0 s"


def test_a_terminal_gets_a_bar_and_a_line_that_stays(clock: Clock):
    out = Terminal()
    with progress.reporting(out), progress.task("Writing", 4, "bytes") as advance:
        advance(4)
        clock.now = 3
    assert out.getvalue().rstrip().endswith("Writing: 3.0 s")


def test_listening_ends_with_its_block(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out):
        pass
    with progress.task("Hashing"):
        clock.now = 5
    assert out.getvalue() == ""


def test_tasks_nest_on_a_terminal(clock: Clock):
    out = Terminal()
    with (
        progress.reporting(out),
        progress.task("Layers", 2) as layer,
        progress.task("Experts", 100, "bytes") as expert,
    ):
        expert(50)
        layer(1)
        clock.now = 2
    assert out.getvalue().rstrip().endswith("Layers: 2.0 s")


def fail_after(clock: Clock, seconds: float) -> None:
    with progress.task("Hashing"):
        clock.now = seconds
        raise ValueError("broken")


def test_a_failed_task_is_not_reported_as_done(clock: Clock):
    out = io.StringIO()
    with progress.reporting(out), pytest.raises(ValueError, match="broken"):
        fail_after(clock, 5)
    assert out.getvalue() == ""
