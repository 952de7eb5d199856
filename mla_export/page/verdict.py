"""The first thing on a page: passed, AMBIGUOUS or failed, and in a sentence what and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mla_export.compare.result import Agreement, Side
from mla_export.page.html import Html, element
from mla_export.page.results import Results
from mla_export.page.words import error, place
from mla_runtime.wording import counted

HEADINGS = {
    "fail": "FAILED",
    "ambiguous": "Passed, with near ties (AMBIGUOUS)",
    "pass": "Passed",
    "": "No verdict",
}


def banner(results: Results) -> Html:
    """Give the verdict of all comparisons of a page."""
    ran = [side for comparison in results.comparisons for side in comparison.sides]
    sentences = [sentence(comparison) for comparison in results.comparisons]
    if not sentences:
        sentences = ["Nothing was compared: this page has speed, memory and cache bytes only."]
    failed = [
        element("li", f"{side.name}: {'; '.join(reasons(side))}.") for side in ran if side.verdict == "fail"
    ]
    return element(
        "div",
        element("strong", _heading(results.verdict, [side for side in ran if side.verdict == "fail"])),
        *(element("p", words) for words in sentences),
        *([element("ul", *failed)] if failed else []),
        class_=f"verdict {results.verdict}".strip(),
        role="status",
    )


def _heading(verdict: str, failed: Sequence[Side]) -> str:
    if len(failed) != 1:
        return HEADINGS[verdict]
    (side,) = failed
    where = "" if side.parted is None else f", first in the {place(side.parted)}"
    return f"FAILED: {side.name}{where}"


def sentence(comparison: Agreement) -> str:
    """Say what a comparison found."""
    judged = [side for side in comparison.sides if side.verdict in ("pass", "ambiguous", "fail")]
    failed = [side for side in judged if side.verdict == "fail"]
    ties = [side.name for side in judged if side.verdict == "ambiguous"]
    absent = [side.name for side in comparison.sides if side.verdict == "absent"]
    over = f"{counted(len(comparison.prompts), 'prompt')} and {counted(comparison.steps, 'step')}"
    if failed:
        parted = "is" if len(failed) == 1 else "are"
        of = counted(len(judged), "side")
        said = f"{len(failed)} of {of} {parted} further off than may be from {comparison.reference}"
    elif judged:
        what = "The one side is" if len(judged) == 1 else f"All {len(judged)} sides are"
        said = f"{what} within what may differ from {comparison.reference}"
    else:
        left = f"; not run here: {', '.join(absent)}" if absent else ""
        return f"Nothing was held against {comparison.reference}{left}."
    said += f", over {over} each."
    if ties:
        said += f" Near ties, where two tokens are right within rounding: {', '.join(ties)}."
    if absent:
        said += f" Not run here: {', '.join(absent)}."
    return said


def reasons(side: Side) -> Iterator[str]:
    """Say what of a side failed, and where it parts first."""
    found = side.logits
    if found is not None and found.verdict == "fail" and side.gate is not None:
        yield (
            f"logits are off by {error(found.errors.rms)} RMS and {error(found.errors.max_abs)} at most, "
            f"{error(side.gate.rms)} and {error(side.gate.max_abs)} are allowed"
        )
    if (bulk := side.bulk) is not None and bulk.parted:
        yield (
            f"fewer than half of its tokens are off: mean KL of all but the furthest 5 % {error(bulk.kl)}, "
            f"{error(bulk.kl_allowed)} allowed"
        )
        if bulk.prompt is not None:
            yield (
                f"the median token of prompt {bulk.prompt + 1} is off by {error(bulk.prompt_rms)} RMS, "
                f"{error(bulk.prompt_allowed)} allowed"
            )
    lost = [row for row in side.greedy if row.verdict == "fail"]
    if lost:
        worst = max(lost, key=lambda row: row.margin or 0.0)
        yield (
            f"its greedy tokens part from the reference's in {counted(len(lost), 'prompt')}, "
            f"by up to {error(worst.margin)} where {error(worst.limit)} is a near tie"
        )
    if side.parted is not None:
        yield (
            f"it parts first in the {place(side.parted)}: {error(side.parted.relative)} of their size, "
            f"{error(side.parted.allowed)} allowed"
        )
    if side.bisection is not None and side.bisection.first is not None:
        yield f"the first operator beyond its budget is {side.bisection.first}"
    if side.reason is not None:
        yield side.reason
