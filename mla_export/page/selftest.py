"""A self-test on a page: the verdict, the device, every stage, its numbers as tables, charts if possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mla_export.charts.numbers import binary
from mla_export.compare.result import Agreement
from mla_export.extras import not_installed
from mla_export.page.comparison import comparison
from mla_export.page.html import Html, document, element, missing, section, table
from mla_export.page.results import Benchmark, Results, result
from mla_export.page.speed import speed
from mla_export.page.style import css
from mla_export.page.words import error
from mla_export.selftest.result import SelfTest, Stage

LOOKS = {"passed": "pass", "failed": "fail", "skipped": "skipped", "not run on hardware": ""}


def selftest_page(found: SelfTest, *, charts: bool) -> str:
    """Give the page; `charts` need matplotlib."""
    gpu = found.device.get("gpu")
    title = f"mla-export self-test: {gpu['name'] if gpu else 'no GPU'}"
    parts = [
        element("h1", title),
        _banner(found),
        section("Device", _device(found.device)),
        section("Stages", _stages(found), *_failures(found)),
        section("Engines", _engines(found)),
        section("Beside ONNX Runtime on the CPU", _agreements(found)),
        section("Speed", _speeds(found)),
    ]
    parts += _drawn(found) if charts else [section("Charts", missing(_undrawn()))]
    footer = f"Made by mla-export {found.version}. Everything on this page is in this file."
    return document(title, css(), *parts, element("footer", footer))


def _undrawn() -> str:
    return f"{not_installed(['matplotlib'])}. The JSON beside this page has all that they would show."


def _banner(found: SelfTest) -> Html:
    ran = ", ".join(found.on_hardware)
    counts = {
        outcome: sum(stage.outcome == outcome for stage in found.stages)
        for outcome in ("passed", "failed", "skipped")
    }
    said = {
        "passed": f"{ran} computed on this card what ONNX Runtime computes on the processor.",
        "failed": "Something did not work; what it was is below, and the rest was done.",
        "not run on hardware": "No engine ran on a card. What can be done without one was done.",
    }
    stages = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    unfinished = [] if found.finished else [element("p", "It ended before all stages were done.")]
    return element(
        "div",
        element("strong", found.verdict[:1].upper() + found.verdict[1:]),
        element("p", f"{said[found.verdict]} Stages: {stages}."),
        *unfinished,
        class_=f"verdict {LOOKS[found.verdict]}".strip(),
        role="status",
    )


def _device(device: Mapping[str, Any]) -> Html:
    rows = list(_facts(device))
    return table("Facts", ("fact", "value"), rows, texts=(0, 1)) if rows else missing("Not known.")


def _facts(device: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in device.items():
        words = f"{before}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts(value, f"{words}: ")
        elif name.endswith("_bytes") and isinstance(value, int):
            yield words.removesuffix(" bytes"), binary(value)
        else:
            yield words, "none" if value is None else str(value)


def _stages(found: SelfTest) -> Html:
    rows = [
        (
            stage.title,
            element("span", stage.outcome, class_=f"badge {LOOKS[stage.outcome]}"),
            f"{stage.seconds:.1f}",
            stage.message.partition("\n")[0] or "–",
        )
        for stage in found.stages
    ]
    return table("What was done", ("stage", "outcome", "seconds", "remark"), rows, texts=(0, 1, 3))


def _failures(found: SelfTest) -> Iterator[Html]:
    for stage in found.stages:
        if "\n" in stage.message:
            yield element("h3", stage.title)
            yield element("pre", stage.message)


def _engines(found: SelfTest) -> Html:
    rows = [
        (
            f"{stage.bundle} on {stage.backend}",
            str(made["version"]),
            ", ".join(made["cards"]),
            f"{made['seconds']:.1f}",
            binary(sum(made["engines"].values())),
            binary(made["weights_outside"]),
        )
        for stage, made in _results(found, "build", "build ahead of time")
    ]
    header = ("bundle", "version", "cards", "build, s", "engines", "weights beside them")
    return table("Built", header, rows, texts=(0, 1, 2)) if rows else missing("None was built.")


def _agreements(found: SelfTest) -> Html:
    rows = []
    for stage, compared in _results(found, "agreement"):
        side = compared["sides"][1]
        if (logits := side["logits"]) is None:
            continue
        errors = logits["errors"]
        agreed = sum(row["agreed"] for row in side["greedy"])
        of = sum(row["steps"] for row in side["greedy"])
        rows.append(
            (
                f"{stage.bundle} on {stage.backend}",
                side["verdict"],
                error(errors["max_abs"]),
                error(errors["rms"]),
                error(side["gate"]["rms"]),
                error(errors["kl"]),
                f"{agreed:,} / {of:,}",
            )
        )
    header = ("bundle", "verdict", "max |Δ|", "RMS Δ", "median allowed", "mean KL, nats", "greedy tokens")
    if not rows:
        return missing("No engine was held against ONNX Runtime.")
    return table("Logits over all forced steps", header, rows, texts=(0, 1))


def _speeds(found: SelfTest) -> Html:
    rows = [
        (
            f"{stage.bundle} on {stage.backend}",
            f"{one['depth']:,}",
            f"{one['prompt_rate']:,.0f}",
            f"{one['step_seconds'] * 1e3:,.2f}",
            f"{one['step_worst_seconds'] * 1e3:,.2f}",
            f"{one['step_rate']:,.0f}",
        )
        for stage, measured in _results(found, "speed")
        for one in measured["measurements"]
    ]
    header = ("bundle", "depth", "prompt tok/s", "step ms", "worst ms", "step tok/s")
    return table("Prompt and step", header, rows) if rows else missing("Nothing was measured.")


def _drawn(found: SelfTest) -> list[Html]:
    """Give the sections of a report, which have charts."""
    documents = [result(dict(made), stage.title) for stage, made in _results(found, "agreement", "speed")]
    compared = [one for one in documents if isinstance(one, Agreement)]
    measured = tuple(one for one in documents if isinstance(one, Benchmark))
    parts = [
        part
        for number, one in enumerate(compared)
        if any(side.steps for side in one.sides)
        for part in comparison(one, f"c{number}")
    ]
    return parts + (speed(Results(benchmarks=measured)) if measured else [])


def _results(found: SelfTest, *names: str) -> Iterator[tuple[Stage, Mapping[str, Any]]]:
    return ((stage, stage.result) for stage in found.stages if stage.name in names and stage.result)
