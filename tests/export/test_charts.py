"""Charts: what is drawn of which data, and that a chart is safe, whole and the same wherever it stands."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from mla_export.charts import Axis, Bars, Chart, Limit, Series, bars, colours, histogram, lines
from mla_export.charts.numbers import binary, powers, short, tokens
from tests.export.references import assert_self_contained, read

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>alert(1)</script>",
    "$x^2$ and $\\bogus$",
    "a\x00b\x1b[31m\nc\ud800",
    "_hidden",
    "模型 🙂",
    '"]]>&amp;--><!--',
    "x" * 500,
]


def some_lines(name: str = "lines", **more: object) -> Chart:
    series = [Series("one", [0, 1, 2], [1e-6, 2e-5, 1e-4]), Series("two", [0, 1, 2], [3.0, None, 5.0])]
    return lines(name, "Error by step", series, Axis("step"), Axis("error", log=True), **more)


def some_bars(name: str = "bars") -> Chart:
    groups = [Bars("weights", [120.0, None]), Bars("cache", [12.5, 300.0])]
    return bars(name, "Memory", ["a", "b"], groups, Axis("MiB"))


def some_histogram(name: str = "histogram") -> Chart:
    samples = [("one", [1e-6, 2e-6, 1e-3, 0.0]), ("two", [1e-2] * 5)]
    limits = [Limit(5e-3, "allowed")]
    return histogram(name, "KL", samples, Axis("KL, nats", log=True), limits=limits)


ALL = [some_lines, some_bars, some_histogram]
TOLD = ["one: 1.0e-06 to 1.0e-04, last 1.0e-04.", "cache: a 12.5, b 300.", "one: 0 to 0.001, median 1.5e-06."]


def texts(chart: Chart) -> list[str]:
    root = ET.fromstring(chart.standalone())
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", ALL)
def test_a_chart_is_one_well_formed_element_that_refers_to_nothing_outside(draw):
    chart = draw()
    root = ET.fromstring(chart.standalone())
    assert root.tag == f"{SVG}svg"
    assert_self_contained(chart.standalone())
    assert_self_contained(chart.inline())
    assert "http" not in chart.inline()
    assert "<style" not in chart.inline()


@pytest.mark.parametrize("draw", ALL)
def test_who_does_not_see_a_chart_is_told_what_it_shows(draw):
    chart = draw()
    root = ET.fromstring(chart.standalone())
    assert root.get("role") == "img"
    title, description = (root.find(f"{SVG}{tag}") for tag in ("title", "desc"))
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == chart.title
    assert any(told in description.text for told in TOLD)


def test_charts_of_one_page_share_no_id():
    page = some_lines("first").inline() + some_lines("second").inline() + some_bars().inline()
    assert_self_contained(f"<!doctype html><body>{page}")
    assert len(read(page).ids) > 10


@pytest.mark.parametrize("draw", ALL)
def test_the_same_data_gives_the_same_bytes_whatever_matplotlib_is_set_to(draw):
    first = draw().standalone()
    with mpl.rc_context({"font.size": 40, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert draw().standalone() == first
        assert mpl.rcParams["font.size"] == 40


def test_another_process_draws_the_same_bytes_and_without_pyplot():
    code = (
        "import sys; from tests.export.test_charts import *\n"
        "sys.stdout.write(''.join(draw().standalone() for draw in ALL))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "graphs", "runtime"))
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "".join(draw().standalone() for draw in ALL)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_any_kind_are_words_and_nothing_else(name: str):
    series = [Series(name, [1, 2], [1, 2]), Series("other", [1, 2], [2, 1])]
    limits = [Limit(1.5, name)]
    drawn = [
        lines("a", name, series, Axis(name), Axis("y"), limits=limits),
        bars(
            "b", name, [name, "other"], [Bars(name, [1, 2]), Bars("other", [1, 2])], Axis("y"), limits=limits
        ),
        histogram("c", name, [(name, [1, 2]), ("other", [1])], Axis("x"), limits=limits),
    ]
    for chart in drawn:
        ET.fromstring(chart.standalone())
        assert_self_contained(chart.standalone())
        if len(name) < 60 and name.isprintable():
            assert any(name in text for text in texts(chart))


def test_a_long_name_keeps_its_ends():
    name = "first" + "x" * 200 + "last"
    shown = texts(lines("a", "t", [Series(name, [1], [1]), Series("b", [1], [1])], Axis("x"), Axis("y")))
    assert any(text.startswith("first") and text.endswith("last") and len(text) < 80 for text in shown)


def test_colours_and_forms_tell_series_apart():
    series = [Series(str(i), [0, 1], [i, i + 1]) for i in range(7)]
    root = ET.fromstring(lines("a", "t", series, Axis("x"), Axis("y")).standalone())
    drawn = {
        (element.get("class"), "stroke-dasharray" in element.get("style", ""))
        for element in root.iter(f"{SVG}path")
        if element.get("class", "").startswith("mla-s")
    }
    assert {role for role, _ in drawn} == {f"mla-{role}" for role in colours.SERIES}
    assert any(dashed for _, dashed in drawn)
    marks = {
        element.get("d") for element in root.iter(f"{SVG}path") if (element.get("id") or "").startswith("a-m")
    }
    assert len(marks) >= 7


def test_a_long_legend_takes_nothing_from_the_plot():
    def height(names: list[str]) -> float:
        series = [Series(name, [0, 1], [0, 1]) for name in names]
        return float(ET.fromstring(lines("a", "t", series, Axis("x"), Axis("y")).standalone()).get("height"))

    few, many = (height([f"{i}: {'a long name ' * 4}" for i in range(count)]) for count in (2, 12))
    assert many - few > 10 * 12  # pixels of so many more rows


def test_no_mark_is_left_in_a_picture():
    for draw in ALL:
        assert "#0000" not in draw().standalone()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("paper", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("role", [role for role in colours.ROLES if role not in ("paper", "faint")])
def test_colours_stand_out_from_their_paper(role: str, paper: int):
    lighter, darker = sorted(
        (luminance(colours.ROLES[name][paper]) for name in (role, "paper")), reverse=True
    )
    # WCAG 2.2: 4.5 for text, 3 for graphics
    assert (lighter + 0.05) / (darker + 0.05) >= (4.5 if role in ("ink", "limit") else 3)


def test_a_standalone_chart_knows_both_papers():
    text = some_lines().standalone()
    assert "prefers-color-scheme:dark" in text
    assert 'class="mla-paper" width="100%"' in text
    assert "prefers-color-scheme" not in some_lines().inline()


def test_what_a_log_axis_has_no_place_for():
    zeros = Series("exact", [0, 1], [0.0, 0.0])
    gaps = Series("gaps", [0, 1, 2, 3], [1e-3, None, math.nan, 1e-2])
    chart = lines("a", "t", [zeros, gaps], Axis("x"), Axis("y", log=True))
    assert "exact (0 throughout)" in texts(chart)
    assert "gaps: 0.001 to 0.01, last 0.01." in chart.inline()
    alone = lines("a", "t", [zeros], Axis("x"), Axis("y", log=True))  # drawn on a linear axis
    assert "exact: 0 to 0, last 0." in alone.inline()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: lines("a", "t", [], Axis("x"), Axis("y")),
        lambda: lines("a", "t", [Series("s", [1], [None])], Axis("x"), Axis("y", log=True)),
        lambda: bars("a", "t", ["c"], [Bars("b", [None])], Axis("y")),
        lambda: histogram("a", "t", [("s", [None, math.inf])], Axis("x")),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ValueError, match="chart a: there is no"):
        draw()


def test_a_histogram_counts_every_sample_once():
    from mla_export.charts.histograms import BINS, _counts, _edges

    values = [10 ** (i / 10 - 8) for i in range(60)]
    edges = _edges(values, True)
    counts = _counts([*values, 0.0, 0.0], edges, True)
    assert (len(counts), sum(counts), counts[0]) == (BINS, 62, counts[0])
    assert counts[0] >= 3
    assert _counts([5.0, 5.0], _edges([5.0, 5.0], False), False)[BINS // 2] == 2
    assert "0 at the left end" in some_histogram().inline()
    assert "share, %" in texts(some_histogram())


def test_limits_are_drawn_and_told():
    chart = some_lines(limits=[Limit(1e-3, "allowed in fp32")])
    assert "allowed in fp32" in texts(chart)
    assert "allowed in fp32: 0.001." in chart.inline()
    assert "mla-limit" in chart.inline()


@pytest.mark.parametrize(
    ("write", "value", "wanted"),
    [
        (short, 0, "0"),
        (short, 12345.0, "12,300"),
        (short, 0.25, "0.25"),
        (short, 1.234e-7, "1.2e-07"),
        (short, 3e9, "3.0e+09"),
        (powers, 1e-3, "10⁻³"),
        (powers, 100.0, "100"),
        (powers, 1e12, "10¹²"),
        (powers, 0.0, ""),
        (tokens, 4096, "4k"),
        (tokens, 2**20, "1M"),
        (tokens, 100, "100"),
        (binary, 512, "512 B"),
        (binary, 2**34, "16 GiB"),
        (binary, 1023 * 2**10, "1,023 KiB"),
    ],
)
def test_numbers_are_short(write, value: float, wanted: str):
    assert write(value) == wanted
