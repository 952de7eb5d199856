"""A comparison on the page: sides and their errors, by step and in all; the tokens that they chose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from mla_export.charts import Axis, Series, histogram, lines
from mla_export.compare.result import Agreement, Side
from mla_export.page.html import Html, badge, element, figure, missing, section, table
from mla_export.page.layers import layers
from mla_export.page.limits import limits_of
from mla_export.page.words import error
from mla_runtime.wording import counted


def comparison(found: Agreement, name: str) -> list[Html]:
    """Give the sections of a comparison; `name` begins the names of its charts."""
    return [
        section("What was compared", _introduction(found), _sides(found)),
        section("Error of the logits", _logits(found), *_by_step(found, name), *_drift(found)),
        section("Divergence of the next token", *_divergence(found, name)),
        section("Error by layer", *layers(found, name)),
        section("Greedy tokens", *_greedy(found)),
    ]


def _introduction(found: Agreement) -> Html:
    prompts, steps = counted(len(found.prompts), "prompt"), counted(found.steps, "token")
    words = (
        f"{found.model}: {prompts} of {_lengths(found.prompts)} tokens, and after each {steps} that every "
        f"side was made to take ({found.forced}), held against {found.reference}; and apart from that each "
        f"side's own greedy tokens. This took {found.seconds:.1f} s."
    )
    return element("p", words)


def _lengths(prompts: Sequence[int]) -> str:
    low, high = (min(prompts), max(prompts)) if prompts else (0, 0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _sides(found: Agreement) -> Html:
    rows = [
        (
            side.name,
            badge(side.verdict),
            ", ".join(filter(None, (side.target, side.absorb))) or "–",
            side.precision or "–",
            side.reason or "–",
        )
        for side in found.sides
    ]
    header = ("side", "verdict", "target, form", "precision", "remark")
    return table("Sides", header, rows, texts=range(5))


def _logits(found: Agreement) -> Html:
    rows = [
        (
            side.name,
            badge(side.logits.verdict),
            error(side.logits.errors.max_abs),
            error(side.logits.errors.rms),
            "–" if side.gate is None else error(side.gate.rms),
            error(1.0 - side.logits.errors.cosine),
            error(side.logits.errors.kl),
            f"{side.logits.errors.rank:,}",
            "–" if side.gate is None else f"{side.logits.would_pass:.2f} of {side.gate.factor:g}",
        )
        for side in found.sides
        if side.logits is not None
    ]
    if not rows:
        return missing("No side ran, so that there are no errors.")
    header = (
        "side",
        "verdict",
        "max |Δ|",
        "RMS Δ",
        "RMS allowed",
        "1 − cosine",
        "mean KL, nats",
        "rank",
        "needs",
    )
    gates = dict.fromkeys(side.gate.words for side in found.sides if side.gate is not None)
    note = (
        f"Allowed: {'; '.join(gates)}. Needs: the smallest factor that would have passed, of the one that is "
        "allowed. Rank: the worst place of the reference's most likely token. Errors and the chart are of "
        "all tokens; where the median token is judged, what is allowed is for that one."
    )
    return Html(table("Over all steps", header, rows, texts=(0, 1)) + element("p", note, class_="note"))


def _by_step(found: Agreement, name: str) -> Iterator[Html]:
    ran = [side for side in found.sides if side.steps]
    if not any(math.isfinite(step.rms) for side in ran for step in side.steps):
        yield missing("No side has finite errors by step, so that there is no chart of them.")
        return
    x = Axis("step (forced tokens after the prompt)", whole=True)
    series = [Series(s.name, [one.step for one in s.steps], [one.rms for one in s.steps]) for s in ran]
    allowed = limits_of((side.gate.rms, side.name) for side in ran if side.gate is not None)
    y = Axis("RMS error, logits", log=True)
    yield figure(
        lines(f"{name}-steps", "Error of the logits by step", series, x, y, limits=allowed),
        "All prompts together. Step 0 is what the prompt itself gave.",
    )


def _drift(found: Agreement) -> Iterator[Html]:
    rows = [
        (
            side.name,
            error(side.drift.first),
            error(side.drift.last),
            f"{side.drift.ratio:.2f} ×" if math.isfinite(side.drift.ratio) else "–",
            f"{max((step.rank for step in side.steps), default=1):,}",
        )
        for side in found.sides
        if side.drift is not None
    ]
    if rows:
        header = ("side", "first quarter", "last quarter", "grown by", "worst rank")
        yield table("RMS error of the logits, early and late in the decode", header, rows)


def _divergence(found: Agreement, name: str) -> Iterator[Html]:
    ran = [(side, [value for value in side.kl if math.isfinite(value)]) for side in found.sides]
    ran = [(side, values) for side, values in ran if values]
    if not ran:
        yield missing("No side has a finite KL divergence, so that there is no histogram.")
        return
    x = Axis("KL(reference ‖ side), nats", log=True)
    samples = [(side.name, values) for side, values in ran]
    yield figure(
        histogram(f"{name}-kl", "KL divergence of the next token", samples, x),
        "The share of all forced positions, in bins of equal width on the log axis.",
    )
    rows = [
        (
            side.name,
            f"{len(values):,}",
            *map(error, (fmean(values), _share(values, 0.5), _share(values, 0.99), max(values))),
        )
        for side, values in ran
    ]
    yield table("KL divergence, nats", ("side", "positions", "mean", "median", "99 %", "largest"), rows)


def _share(values: Sequence[float], share: float) -> float:
    """Give the value that `share` of the values stay within."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def _greedy(found: Agreement) -> Iterator[Html]:
    ran = [side for side in found.sides if side.greedy]
    if not ran:
        yield missing("No side decoded greedy tokens of its own.")
        return
    rows = [
        (
            side.name,
            badge(_worst(side)),
            f"{sum(row.agreed for row in side.greedy):,} / {sum(row.steps for row in side.greedy):,}",
            f"{sum(row.first_difference is None for row in side.greedy)} / {len(side.greedy)}",
        )
        for side in ran
    ]
    yield table("In all", ("side", "verdict", "tokens agreed", "prompts agreed"), rows, texts=(0, 1))
    parted = [
        (
            side.name,
            row.name,
            f"{row.first_difference:,}",
            error(row.margin),
            error(row.limit),
            badge(row.verdict),
        )
        for side in ran
        for row in side.greedy
        if row.first_difference is not None
    ]
    if parted:
        header = ("side", "prompt", "first at step", "lost by", "tie up to", "verdict")
        yield table("Where tokens differ", header, parted, texts=(0, 1, 5))
        yield element(
            "p",
            "Lost by: how much less the reference gives the token, in logits. Up to what rounding may make "
            "of both it is a near tie, and AMBIGUOUS.",
            class_="note",
        )


def _worst(side: Side) -> str:
    verdicts = [row.verdict for row in side.greedy]
    return next((one for one in ("fail", "ambiguous") if one in verdicts), "pass")
