"""Speed, memory and cache bytes on the page, of what `bench` and `inspect` found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mla_export.charts import Axis, Bars, Series, bars, lines
from mla_export.charts.numbers import binary, tokens
from mla_export.page.html import Html, figure, missing, section, table
from mla_export.page.results import Benchmark, Model, Results, Unmeasured

DOUBLINGS = 7  # between the shortest and the longest context of a chart


def speed(results: Results) -> list[Html]:
    """Give the sections of speed, memory and cache bytes by context."""
    measured = [one for one in results.benchmarks if one.measurements]
    return [
        section("Speed by depth", *_speed(measured, _looks(results)), *_unmeasured(results.unmeasured)),
        section("Memory", *_memory(measured)),
        section("Cache bytes by context", *_cache(results)),
    ]


def _looks(results: Results) -> dict[str, int]:
    """Give the looks that sides have in the charts of one comparison, for those of the same name here."""
    if len(results.comparisons) != 1:
        return {}
    ran = [side.name for side in results.comparisons[0].sides if side.logits is not None]
    looks = {name: look for look, name in enumerate(ran)}
    return looks if all(one.name in looks for one in results.benchmarks) else {}


def _speed(measured: Sequence[Benchmark], looks: Mapping[str, int]) -> Iterator[Html]:
    if not measured:
        yield missing("Nothing was measured. mla-export bench measures; --from takes what its --json gives.")
        return
    x = Axis("depth (tokens in the cache before)")
    for part, title, y in (
        ("step", "Steps: tokens a second by depth", "generated tokens/s"),
        ("prompt", "Prompts: tokens a second by depth", "prompt tokens/s"),
    ):
        series = [
            Series(
                one.name,
                [found.depth for found in one.measurements],
                [found.step_rate if part == "step" else found.prompt_rate for found in one.measurements],
                looks.get(one.name),
            )
            for one in measured
        ]
        yield figure(lines(f"{part}-speed", title, series, x, Axis(y, from_zero=True)))
    rows = [
        (
            one.name,
            f"{found.depth:,}",
            f"{found.prompt_rate:,.0f}",
            f"{found.step_seconds * 1e3:,.2f}",
            f"{found.step_worst_seconds * 1e3:,.2f}",
            f"{found.step_rate:,.0f}",
        )
        for one in measured
        for found in one.measurements
    ]
    header = ("bundle", "depth", "prompt tok/s", "step ms", "worst ms", "step tok/s")
    yield table("Prompt and step", header, rows)


def _unmeasured(left: Sequence[Unmeasured]) -> Iterator[Html]:
    for one in left:
        yield missing(f"{one.bundle} on {one.backend} was not measured: {one.reason}")


def _memory(measured: Sequence[Benchmark]) -> Iterator[Html]:
    deepest = [(one, max(one.measurements, key=lambda found: found.depth)) for one in measured]
    if not deepest:
        yield missing("Nothing was measured, so that there is no memory to show.")
        return
    peaks = [max((found.peak_bytes or 0 for found in one.measurements), default=0) for one, _ in deepest]
    caches = [last.cache_bytes for _, last in deepest]
    unit, size = ("GiB", 2**30) if max(*peaks, *caches) >= 2**32 else ("MiB", 2**20)
    groups = [
        Bars("peak of the process", [peak / size if peak else None for peak in peaks]),
        Bars("of it the cache, at the deepest", [cache / size for cache in caches]),
    ]
    chart = bars("memory", "Peak memory and cache", [one.name for one, _ in deepest], groups, Axis(unit))
    yield figure(chart, "Peak resident memory of a process that measured this bundle alone.")
    rows = [
        (
            one.name,
            binary(one.cache_bytes_per_token),
            f"{last.depth:,}",
            binary(cache),
            binary(peak) if peak else "unknown",
        )
        for (one, last), cache, peak in zip(deepest, caches, peaks, strict=True)
    ]
    header = ("bundle", "cache a token", "deepest", "cache there", "peak memory")
    yield table("Memory and cache", header, rows)


def _cache(results: Results) -> Iterator[Html]:
    models = list({one.costs: one for one in results.models}.values())
    if not models and not results.benchmarks:
        yield missing("No model was read, so that there are no cache bytes.")
        return
    lengths = _contexts(max((one.geometry.max_context for one in models), default=2**17))
    rates = dict(_rates(models, results.benchmarks))
    series = [Series(name, lengths, [rate * length for length in lengths]) for name, rate in rates.items()]
    x = Axis("context, tokens", log=True, ticks=lengths, write=tokens)
    low, high = min(rates.values()) * lengths[0], max(rates.values()) * lengths[-1]
    y = Axis("cache", log=True, ticks=_powers_of_4(low, high), write=binary)
    yield figure(
        lines("cache", "Cache of one sequence by context", series, x, y),
        "Computed from the geometry. int8: one scale a token, and the rotary key in fp16 beside latent rows.",
    )
    rows = [
        (name, f"{rate:,}", *(binary(rate * length) for length in lengths[-3:]))
        for name, rate in rates.items()
    ]
    header = ("cache", "bytes a token", *(f"at {tokens(length)}" for length in lengths[-3:]))
    yield table("Cache bytes", header, rows)


def _rates(models: Sequence[Model], measured: Sequence[Benchmark]) -> Iterator[tuple[str, int]]:
    """Give the cache bytes a token: of each model in each form, and of the bundles that were measured."""
    for model in models:
        of = f"{model.family}: " if len(models) > 1 else ""
        caches = model.cache_bytes_per_token
        for words, rates in (("latent rows", caches.latent), ("keys and values", caches.expanded)):
            yield f"{of}{words}, fp16", rates.float16
            yield f"{of}{words}, int8", rates.int8
    sharing: dict[int, dict[str, None]] = {}
    for one in measured:  # bundles with one cache share a line
        sharing.setdefault(one.cache_bytes_per_token, {})[one.label] = None
    for rate, names in sharing.items():
        yield f"as exported: {', '.join(names)}", rate


def _contexts(longest: int) -> list[int]:
    """Give the longest context and powers of two before it."""
    top = longest.bit_length() - 1
    powers = [2**i for i in range(max(0, top - DOUBLINGS), top + 1)]
    apart = [power for power in powers if power * 1.4 <= longest]  # so far apart that both can be read
    return [*apart, longest]


def _powers_of_4(low: float, high: float) -> list[float]:
    return [4.0**i for i in range(30) if low / 4 <= 4.0**i <= high * 4]
