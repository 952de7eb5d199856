"""`mla-export selftest`: build, run, compare and time engines here; one JSON and one page to send back."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from mla_export.cli import EXIT_NOT_ON_HARDWARE, EXIT_OK, EXIT_UNVERIFIED
from mla_export.commands.tables import STYLES, console, print_json, table
from mla_export.extras import is_there
from mla_export.one_file import check_file, write_file
from mla_export.page.selftest import selftest_page
from mla_export.selftest.apart import apart
from mla_export.selftest.private import known_places, without_places
from mla_export.selftest.result import SelfTest, Stage
from mla_export.selftest.run import Run
from mla_runtime.engines.flavour import FLAVOURS
from mla_runtime.errors import ExportError

CODES = {"passed": EXIT_OK, "failed": EXIT_UNVERIFIED, "not run on hardware": EXIT_NOT_ON_HARDWARE}
LOOKS = {"passed": "pass", "failed": "fail", "skipped": "skipped", "not run on hardware": "ambiguous"}


def run(args: argparse.Namespace) -> int:
    """Do all stages, keep what was found after each, and write the page at the end."""
    data, page = _files(args.out)
    for file in (data, page):
        check_file(file, force=args.force)
    places = [*known_places(), *(Path(path).resolve().parent for path in args.bundles)]

    def save(found: SelfTest) -> None:
        write_file(data, json.dumps(found.to_json(), indent=1) + "\n", force=True)

    def begin(title: str) -> None:
        if not args.quiet:
            sys.stderr.write(f"{title}\n")

    def call(work: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return apart(work, arguments, quiet=args.quiet)

    def clean(value: Any) -> Any:
        return without_places(value, places)

    flavours = [args.backend] if args.backend else _installed()
    with tempfile.TemporaryDirectory(prefix="mla-export-selftest-") as folder:
        found = Run(call, begin, save, clean).everything(args.bundles, flavours, Path(folder))
    write_file(page, selftest_page(found, charts=is_there("matplotlib")), force=args.force)
    if args.json:
        print_json(found.to_json())
    else:
        _show(found, data, page)
    return CODES[found.verdict]


def _files(out: str) -> tuple[Path, Path]:
    """Give the JSON's file and the page's: of a folder, which is made, or beside each other."""
    given = Path(out)
    if given.suffix in (".json", ".html"):
        return given.with_suffix(".json"), given.with_suffix(".html")
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ExportError(f"{given}: the folder cannot be made ({cause}); choose another") from cause
    return given / "selftest.json", given / "selftest.html"


def _installed() -> list[str]:
    """Give the flavours of TensorRT that are installed; the first of all where none is, to say what to do."""
    found = [name for name, flavour in FLAVOURS.items() if is_there(flavour.module)]
    return found or list(FLAVOURS)[:1]


def _remark(stage: Stage) -> str:
    """Say why a stage failed; those that were skipped for one reason are one line."""
    words = stage.message.partition("\n")[0]
    return f"skipped: {words}" if stage.outcome == "skipped" else f"{stage.title}: {words}"


def _show(found: SelfTest, data: Path, page: Path) -> None:
    rows = [
        (stage.title, f"{stage.seconds:.1f} s", Text(stage.outcome, style=STYLES[LOOKS[stage.outcome]]))
        for stage in found.stages
    ]
    out = console()
    out.print(table("Stages", ("stage", "took", "outcome"), rows))
    for words in dict.fromkeys(_remark(stage) for stage in found.stages if stage.message):
        out.print(words)
    out.print(Text(found.verdict, style=STYLES[LOOKS[found.verdict]]), soft_wrap=True)
    out.print(f"to send back: {data} and {page}", soft_wrap=True)
