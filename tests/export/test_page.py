"""The page of a report: whole, safe, and true to the results that it is made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest

from mla_export.compare.result import Agreement, Bulk
from mla_export.page import page
from mla_export.page.html import POLICY, Html, element, markup, table
from mla_export.page.results import Benchmark, Model, Results, Unmeasured, benchmark, model, result
from mla_export.page.verdict import banner
from tests.export.agreements import absent, agreement, ambiguous, everything, failed, reference, side
from tests.export.benchmarks import bench_json, inspect_json
from tests.export.references import assert_self_contained, read

HOSTILE = "<script>alert('x')</script>\"><img src=//e.example onerror=a()>\x1b&amp;$x^2$"


def full(comparison: Agreement | None = None) -> Results:
    return Results(
        comparisons=(everything() if comparison is None else comparison,),
        benchmarks=(benchmark(bench_json(), "b"), benchmark(bench_json("out/int4", 2.0), "b")),
        unmeasured=(Unmeasured("fp32", "ort:cuda", "no CUDA here"),),
        models=(model(inspect_json(), "i"),),
    )


@cache
def whole() -> str:
    """The page of everything."""
    return page(full(), "1.2.3")


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words(text: str) -> str:
    """All text of a page, as a reader has it before them."""
    reader = _Words()
    reader.feed(text.partition("</head>")[2] or text)
    return " ".join(" ".join(reader.words).split())


def test_a_page_refers_to_nothing_outside_and_runs_nothing():
    text = whole()
    assert_self_contained(text)
    assert len(read(text).ids) > 20
    assert f'content="{POLICY}"' in text
    assert "default-src 'none'" in POLICY
    assert text.startswith("<!DOCTYPE html>")
    assert "http" not in text.replace("http-equiv", "")


def test_the_reader_of_references_finds_what_is_outside():
    for bad in (
        '<img src="x.png">',
        "<script>1</script>",
        '<a href="https://e.example">x</a>',
        '<p style="background:url(//e.example)">x</p>',
        "<style>@import 'x.css'</style>",
        '<p onclick="a()">x</p>',
        '<svg><use xlink:href="other.svg#a"/></svg>',
    ):
        assert read(bad).outside, bad
    with pytest.raises(AssertionError):
        assert_self_contained('<p id="a"></p><p id="a"></p>')
    with pytest.raises(AssertionError):
        assert_self_contained('<svg><use href="#gone"/></svg>')


def test_the_same_results_give_the_same_bytes():
    assert page(full(), "1.2.3") == whole()


def test_a_page_of_saved_results_is_that_of_the_results():
    saved = result(json.loads(json.dumps(everything().to_json())), "f")
    assert isinstance(saved, Agreement)
    assert page(full(saved), "1.2.3") == whole()


@pytest.mark.parametrize(
    ("sides", "kind", "heading", "said"),
    [
        ([side("a on ort:cpu", 1e-6)], "pass", "Passed", "The one side is within what may differ from the"),
        (
            [side("a on ort:cpu", 1e-6), ambiguous()],
            "ambiguous",
            "(AMBIGUOUS)",
            "rounding: out/int8 on ort:cpu.",
        ),
        (
            [side("a on ort:cpu", 1e-6), failed(), absent()],
            "fail",
            "FAILED: out/int4-broken on ort:cpu, first in the latent rows of layer 2, in the prompt graph",
            "1 of 2 sides is further off than may be from the checkpoint in float64, over 3 prompts and 24 "
            "steps "
            "each. Not run here: out/fp32 on tensorrt-rtx.",
        ),
        (
            [failed(), replace(failed(), name="b")],
            "fail",
            "FAILED 2 of 2 sides are further",
            "b: logits are off by",
        ),
        (
            [reference(), absent()],
            "",
            "No verdict",
            "Nothing was held against the checkpoint in float64; not run",
        ),
    ],
    ids=["pass", "ambiguous", "fail", "two fail", "nothing ran"],
)
def test_the_verdict_comes_first_and_says_what_and_where(sides, kind: str, heading: str, said: str):
    text = banner(Results(comparisons=(agreement(*sides),)))
    assert text.startswith(f'<div class="{f"verdict {kind}".strip()}"')
    assert heading in words(text)
    assert said in words(text)


def test_the_verdict_stands_before_everything_else():
    assert words(whole()).index("FAILED: out/int4-broken") < words(whole()).index("What was compared")


def test_why_a_side_failed_is_said_with_numbers_and_limits():
    shown = words(whole())
    assert "logits are off by 4.0e-01 RMS and 3.6e+00 at most, 2.0e-01 and 1.4e+01 are allowed" in shown
    assert "part from the reference's in 1 prompt, by up to 4.5e+00 where 9.0e-01 is a near tie" in shown
    assert "9.0e-01 of their size" in shown
    assert "the first operator beyond its budget is layers.2.attention" in shown
    assert "Inside layer 2 of out/int4-broken on ort:cpu" in shown


def test_every_part_has_its_chart_and_its_table():
    text = whole()
    for chart in ("c1-steps", "c1-kl", "c1-latent", "c1-rope", "c1-block", "step-speed", "memory", "cache"):
        assert f'id="{chart}-title"' in text
    captions = re.findall(r"<caption>(.+?)</caption>", text)
    for caption in ("Sides", "Over all steps", "KL divergence, nats", "Prompt and step", "Cache bytes"):
        assert caption in captions
    assert "Made by mla-export 1.2.3." in words(text)


def test_what_is_missing_is_said_where_it_would_be():
    shown = words(page(Results(), "1"))
    assert "Nothing was compared" in shown
    for part in (
        "No comparison was given.",
        "Nothing was measured.",
        "no memory to show",
        "No model was read",
    ):
        assert part in shown
    nothing = agreement(absent())
    shown = words(page(Results(comparisons=(nothing,)), "1"))
    for part in (
        "No side ran",
        "no chart of them",
        "no histogram",
        "No side shows latent rows",
        "of its own",
    ):
        assert part in shown
    assert "tensorrt-rtx is not installed; try: pip install 'mla-export[rtx]'" in shown
    why = Results(comparison_missing="Not compared: none of these bundles is in fp32.")
    assert "Not compared: none of these" in words(page(why, "1"))  # which draws nothing


def test_a_backend_that_was_not_measured_says_why():
    assert "fp32 on ort:cuda was not measured: no CUDA here" in words(whole())


def test_what_is_not_finite_is_said_and_not_drawn():
    bad = failed()
    nan = float("nan")
    steps = tuple(replace(step, rms=nan, max_abs=nan) for step in bad.steps)
    layers = tuple(replace(layer, relative=nan) for layer in bad.layers)
    errors = replace(bad.logits.errors, rms=float("inf"))
    bad = replace(bad, steps=steps, layers=layers, kl=(nan,) * 9, logits=replace(bad.logits, errors=errors))
    text = page(Results(comparisons=(agreement(bad),)), "1")
    assert_self_contained(text)
    assert "not finite" in words(text)
    assert "No side has finite errors by step" in words(text)
    assert "no histogram" in words(text)


@pytest.mark.parametrize("name", [HOSTILE, "</title></style><script>1</script>", "a\x00b\ud800", "模型"])
def test_names_from_bundles_are_text(name: str):
    hostile = replace(
        failed(),
        name=name,
        precision=name,
        target=name,
        reason=name,
        layers_note=name,
        gate=replace(failed().gate, words=name),
        bisection=replace(failed().bisection, found=name, first=name),
        greedy=tuple(replace(row, name=name) for row in failed().greedy),
    )
    compared = replace(agreement(hostile), model=name, reference=name, forced=name)
    results = replace(
        full(compared),
        benchmarks=(benchmark(bench_json(name), "b"),),
        unmeasured=(Unmeasured(name, name, name),),
        models=(model(inspect_json(name, family=name), "i"), model(inspect_json(name, "other"), "i")),
        comparison_missing=name,
    )
    text = page(results, name)
    assert_self_contained(text)
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff]", text)
    text.encode("utf-8")


def test_text_is_text_unless_it_was_made_here():
    assert markup("<b>") == "&lt;b&gt;"
    assert markup(Html("<b>")) == "<b>"
    assert (
        element("p", "a & b", element("b", "<"), class_='"') == '<p class="&quot;">a &amp; b<b>&lt;</b></p>'
    )
    assert "&lt;i&gt;" in table("<i>", ("a",), [("<i>",)])
    assert "<i>" not in table("<i>", ("<i>",), [("<i>",)])


def test_bundles_that_keep_the_same_share_a_line_and_models_have_names():
    shown = words(whole())
    assert "as exported: fp32, int4" in shown
    two = replace(
        full(), models=(model(inspect_json(), "i"), model(inspect_json(family="youtu", context=4096), "i"))
    )
    assert "youtu: latent rows, int8" in words(page(two, "1"))
    same = Results(models=(model(inspect_json(), "i"), model(inspect_json("other"), "i")))
    assert "deepseek_v3: latent" not in words(page(same, "1"))


def test_cache_bytes_are_those_of_the_context():
    text = words(page(Results(models=(model(inspect_json(context=4096), "i"),)), "1"))
    assert "keys and values, fp16 276,480 270 MiB 540 MiB 1.05 GiB" in text  # at 1k, 2k and 4k
    for context in (1, 3, 163_840):
        assert_self_contained(page(Results(models=(model(inspect_json(context=context), "i"),)), "1"))


def test_a_page_reads_on_dark_screens_and_prints_light():
    style = whole().partition("<style>")[2].partition("</style>")[0]
    dark = re.findall(r"@media ([^{]*prefers-color-scheme:dark[^{]*)", style)
    assert dark
    assert all("screen" in query for query in dark), "paper is light"
    assert "@media print" in style
    assert "break-inside: avoid" in style
    assert "overflow-x: auto" in style


def kinds() -> list[type]:
    return [Agreement, Benchmark, Model]


def test_each_result_is_told_apart():
    found = [result(everything().to_json(), "a"), result(bench_json(), "b"), result(inspect_json(), "i")]
    assert [type(one) for one in found] == kinds()


def test_a_side_looks_alike_in_every_chart():
    found = everything()
    ran = [side for side in found.sides if side.logits is not None]
    assert len(ran) > 1
    last = benchmark(bench_json(), "b")
    sides = tuple(replace(side, name=last.name) if side is ran[-1] else side for side in found.sides)
    made = page(replace(full(replace(found, sides=sides)), benchmarks=(last,)), "1.2.3")
    chart = made.partition("Steps: tokens a second by depth")[2].partition("</svg>")[0]
    assert f"mla-s{len(ran) - 1}" in chart
    assert "mla-s0" not in chart


def test_what_breaks_fewer_than_half_of_the_tokens_is_said():
    broken = replace(side("a", 0.1, "fail"), bulk=Bulk(2e-1, 1e-2, 4, 3e-1, 1e-1))
    told = words(banner(replace(full(), comparisons=(replace(everything(), sides=(broken,)),))))
    assert "mean KL of all but the furthest 5 % 2.0e-01, 1.0e-02 allowed" in told
    assert "median token of prompt 5 is off by 3.0e-01 RMS, 1.0e-01 allowed" in told
