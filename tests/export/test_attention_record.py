"""What is written of the comparison is what its record holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from mla_export.attention.cases import shape_of
from mla_export.attention.measure import Case, Measured, Point
from mla_export.commands.compare_attention import show

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "attention.json").read_text(encoding="utf-8"))
PAGES = {"docs/attention.md": 0, "samples/attention_compared.md": 2}  # the run whose tables they have


def printed(run: dict, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The tables of a run of the record, as the command prints them, but for the error on a text."""
    name, shape = shape_of(None if run["like"] == "DeepSeek-V2-Lite" else ROOT / run["like"])
    assert name.endswith(run["like"])
    (one,) = run["backends"]
    cases, points = ([kind(**x) for x in one[key]] for kind, key in ((Case, "cases"), (Point, "points")))
    measured = Measured(one["backend"], tuple(cases), tuple(points))
    show(Console(width=100, highlight=False, markup=False), run["like"], shape, [measured], {}, {})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    return lines[: lines.index(next(line for line in lines if line.startswith("×:")))]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_tables_of_the_record(page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run = RECORD["runs"][PAGES[page]]
    written = [line.strip() for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    missing = [line for line in printed(run, capsys) if line not in written]
    assert not missing
    assert f"$ {run['command']}" in written


def test_readme_has_the_figures_of_the_record():
    (one,) = RECORD["runs"][0]["backends"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        cells[0]: cells[1:]
        for line in readme.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 8
    }
    names = {"MHA": "mha", "GQA, 8 groups": "gqa", "MQA": "mqa", "MLA, expanded": "expanded"}
    for name, kind in {**names, "MLA, absorbed": "mla"}.items():
        int8 = "int8 latent" if kind == "mla" else "int8"
        cases = {case["cache"]: case for case in one["cases"] if case["kind"] == kind}
        times = {(p["cache"], p["depth"]): p["layer_seconds"] for p in one["points"] if p["kind"] == kind}
        steps = [times["float32", 1024], times["float32", 16384], times[int8, 16384]]
        assert rows[name][0] == f"{cases['float32']['elements']:,}"
        assert rows[name][3] == f"{cases['float32']['weights'] / 1e6:.1f} M"
        assert rows[name][4:] == [f"{1e3 * seconds:.1f} ms" for seconds in steps]
        for cell, cache in zip(rows[name][1:3], ("float32", int8), strict=True):
            number, unit = cell.split()
            nbytes = float(number) * {"KiB": 1024, "B": 1}[unit]
            assert nbytes == pytest.approx(cases[cache]["cache_bytes"], rel=0.03)


def test_the_page_has_the_figures_of_128_heads():
    run = RECORD["runs"][3]
    (one,) = run["backends"]
    page = (ROOT / "docs" / "attention.md").read_text(encoding="utf-8").partition("## With 128 heads")[2]
    assert f"$ {run['command']}" in page
    for kind, name in {"mha": "MHA", "gqa": "GQA, 8 groups", "mla": "MLA, absorbed"}.items():
        caches = ("float32", "int8 latent" if kind == "mla" else "int8")
        points = {p["cache"]: p for p in one["points"] if p["kind"] == kind and p["depth"] == 4096}
        times = [points[cache][part] for part in ("core_seconds", "layer_seconds") for cache in caches]
        assert f"| {' | '.join(f'{1e3 * seconds:.1f} ms' for seconds in times)} |" in page
        assert f"| {name} | " in page
