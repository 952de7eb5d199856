"""Every page of samples/ is run as it is written: its commands end as they say and print what it shows.

In a page, an indented block is a session: a line `$ command` is run, and the lines below it are what it has
to print. A command ends with 0, or with N where it is followed by `# exits with N`. A line `...` stands for
any lines. What `inspect` and `cost` print is compared as it is. For all others numbers that differ from
machine to machine do not count: those with decimals or a unit, and those of a table's columns of rates and
times; all else has to agree: words, rows and columns, whole numbers, files. A fenced block is not run; one
that begins with ```json my.json is the content of that file.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mla_export.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "samples").glob("*.md"))
EXITS = re.compile(r"\s+# exits with (\d+)$")
ANY = "..."
# they compute, and measure nothing
SAME_EVERYWHERE = (["mla-export", "inspect"], ["mla-export", "cost"])

UNITS = r"(?:ms|s|µs|KiB|MiB|GiB|TiB|B|kB|MB|GB|TB|GB/s|tok/s|tokens/s|×|%|nats)"
NUMBER = r"\d[\d,]*"
VARIES = re.compile(rf"{NUMBER}\.\d+(?:e[-+]?\d+)?|{NUMBER}e[-+]?\d+|{NUMBER}(?= ?{UNITS}(?!\w))")
TIMED = re.compile(r"(?:tok|tokens)/s|\b(?:ms|seconds|worst|peak RAM)\b")


@dataclass
class Command:
    """One command of a page, the line it is on, its exit code and the lines it is shown to print."""

    line: int
    words: list[str]
    code: int
    shown: list[str] = field(default_factory=list)


def parse(text: str) -> tuple[list[Command], dict[str, str]]:
    """Give the commands of a page and the files that it writes out."""
    commands: list[Command] = []
    files: dict[str, str] = {}
    fence: str | None = None
    block = False  # whether the line before belongs to an indented block
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            name = line.partition(" ")[2].strip()
            fence, block = (name if fence is None else None), False
        elif fence is not None:
            if fence:
                files[fence] = files.get(fence, "") + line + "\n"
        elif line.startswith("    $ "):
            commands.append(_command(number, line[6:]))
            block = True
        elif line.startswith("    "):
            assert block, f"line {number}: an indented block begins with a command; fence what is not run"
            commands[-1].shown.append(line[4:])
        elif not line:
            if block:
                commands[-1].shown.append("")
        else:
            block = False
    return commands, files


def _command(number: int, line: str) -> Command:
    exits = EXITS.search(line)
    return Command(number, shlex.split(EXITS.sub("", line), comments=True), int(exits[1]) if exits else 0)


def run(command: Command) -> tuple[int, str]:
    """Run a command here and give its exit code and what it printed."""
    words, target = command.words, None
    if words[-2:-1] == [">"]:
        words, target = words[:-2], Path(words[-1])
    if words[0] == "mla-export":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                code = main([*words[1:], "--quiet"])
            except SystemExit as ended:  # of argparse
                code = int(ended.code or 0)
        text = printed.getvalue()
    else:
        program = sys.executable if words[0] == "python" else words[0]
        paths = os.pathsep.join(str(ROOT / part) for part in ("", "graphs", "runtime"))
        env = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=300, env=env)
        code, text = done.returncode, done.stdout
    if target is not None:
        target.write_text(text, encoding="utf-8")
        text = ""
    return code, text


def masked(lines: list[str]) -> list[str]:
    """Take out what may differ: numbers that vary, the widths of columns, blank lines."""
    found: list[str] = []
    timed: set[int] = set()  # columns of the table that the line is in
    for i, line in enumerate(lines):
        cells = re.split(r"\s{2,}", line.strip())
        if i + 1 < len(lines) and re.fullmatch(r"─+", lines[i + 1].strip()):
            timed = {column for column, cell in enumerate(cells) if TIMED.search(cell)}
        elif not line.strip():
            timed = set()
        elif timed:
            cells = [re.sub(NUMBER, "#", cell) if i in timed else cell for i, cell in enumerate(cells)]
        text = re.sub(r"─+", "─", VARIES.sub("#", " ".join(" ".join(cells).split())))
        if text:
            found.append(text)
    return found


def _as_it_is(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines if line.strip()]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether what is shown is what was printed, `...` being any lines."""
    if not shown:
        return not printed
    if shown[0] == ANY:
        return any(matches(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and matches(shown[1:], printed[1:])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, from which the samples and the configurations are to be reached."""
    for name in ("samples", "tests", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_what_happens(page: Path, folder: Path):
    commands, files = parse(page.read_text(encoding="utf-8"))
    assert commands, "a page shows at least one command"
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    for command in commands:
        code, printed = run(command)
        where = f"{page.name}:{command.line}: {' '.join(command.words)}"
        assert code == command.code, f"{where}\nended with {code}, not {command.code}\n{printed}"
        look = _as_it_is if command.words[:2] in SAME_EVERYWHERE else masked
        shown, found = look(command.shown), look(printed.splitlines())
        assert matches(shown, found), f"{where}\n" + "\n".join(_difference(shown, found)) + f"\n\n{printed}"


def _difference(shown: list[str], printed: list[str]) -> Iterator[str]:
    yield "shown, but not printed:"
    yield from (f"  {line}" for line in shown if line not in printed and line != ANY)
    yield "printed, but not shown:"
    yield from (f"  {line}" for line in printed if line not in shown)


def test_there_are_pages():
    assert "choose_a_device" in [page.stem for page in PAGES]


PAGE = """
Text.

    $ mla-export inspect model   # exits with 2
    one line

     a    b
    ─────────
    $ python -c 'print(1)' > out.txt

```json my.json
{"a": 1}
```

```
    $ not run
```
"""


def test_a_page_is_parsed():
    commands, files = parse(PAGE)
    assert [(c.line, c.words, c.code) for c in commands] == [
        (4, ["mla-export", "inspect", "model"], 2),
        (9, ["python", "-c", "print(1)", ">", "out.txt"], 0),
    ]
    assert commands[0].shown == ["one line", "", " a    b", "─────────"]
    assert files == {"my.json": '{"a": 1}\n'}
    with pytest.raises(AssertionError, match="line 2: an indented block begins with a command"):
        parse("Text.\n    output of nothing\n")


def test_what_varies_does_not_count_and_all_else_does():
    def same(first: str, second: str) -> bool:
        return matches(masked(first.splitlines()), masked(second.splitlines()))

    assert same("out/b: 14.3 MiB in 6.0 s", "out/b:  15.0 MiB in 12.5 s")
    assert same("step 12 ms, 3 % of it, 1.2e-05 off", "step 9 ms, 40 % of it, 8e-6 off")
    assert same("64 rows\n...\nend", "64 rows\nthis\nand that\nend")
    assert not same("64 rows", "65 rows")
    assert not same("27 layers, 3 steps", "27 layers, 4 steps")
    assert not same("pass  12 ms", "fail  12 ms")
    assert not same("one", "one\ntwo")
    assert not same("one\ntwo", "one")
    assert not same("one\n...", "two\n...")
    table = " depth   step tok/s   rows\n ──────────────\n {}   {}   {}"
    assert same(table.format("2,048", "1,210", 7), table.format("2,048", "98", 7))
    assert not same(table.format("2,048", "1,210", 7), table.format("4,096", "1,210", 7))
    assert not same(table.format("2,048", "1,210", 7), table.format("2,048", "1,210", 8))
