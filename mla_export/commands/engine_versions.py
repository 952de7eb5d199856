"""On which TensorRT versions a bundle builds, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from mla_runtime.engines.flavour import FLAVOURS
from mla_runtime.engines.version_check import Problem, Report, Verdict
from mla_runtime.engines.versions import dotted, title

_LABELS: dict[Verdict, str] = {"builds": "builds on", "uncertain": "uncertain on", "refused": "not on"}


def facts(reports: Sequence[Report]) -> Iterator[tuple[str, str]]:
    """Yield label and text for a survey of versions: where it builds, then where not and why, in spans."""
    spans = [span for flavour in FLAVOURS.values() for span in _spans(reports, flavour.name, flavour.oldest)]
    spans.reverse()
    if builds := [_named(span, reports) for span in spans if span[0].verdict == "builds"]:
        yield _LABELS["builds"], "; ".join(builds)
    for verdict in ("uncertain", "refused"):
        for place, span in enumerate(span for span in spans if span[0].verdict == verdict):
            label = "" if place else _LABELS[verdict]
            first, *more = span[0].problems
            among = f", one of {len(more) + 1} reasons" if more else ""
            yield label, f"{_named(span, reports)}: {first.what}{among}; {first.instead}"


def lines(report: Report) -> Iterator[str]:
    """Yield what a report says, a line for each problem; the first names the version and the verdict."""
    verdicts: dict[Verdict, str] = {
        "builds": "takes these graphs, as far as the table of versions tells",
        "uncertain": "may take these graphs; no source tells all of it",
        "refused": "does not take these graphs",
    }
    yield f"{_with_jetpacks(report.version.name, report.jetpacks)} {verdicts[report.verdict]}"
    for problem in report.problems:
        yield f"{_where(problem)}{problem.what}; {problem.instead}"


def _spans(reports: Sequence[Report], flavour: str, oldest: tuple[int, int]) -> Iterator[list[Report]]:
    """Yield runs of versions of which the same is said; those before the oldest supported are left out."""
    usable = [r for r in reports if r.version.flavour == flavour and r.version.number >= oldest]
    for _, span in groupby(usable, lambda r: (r.verdict, [(p.what, p.instead) for p in r.problems])):
        yield list(span)


def _named(span: Sequence[Report], reports: Sequence[Report]) -> str:
    first, last = span[0].version, span[-1].version
    newest = max(r.version.number for r in reports if r.version.flavour == first.flavour)
    name = f"{title(first.flavour)} {dotted(first.number)}"
    if last.number == newest:
        name += " and later"
    elif len(span) > 1:
        name += f" to {dotted(last.number)}"
    return _with_jetpacks(name, [jetpack for report in span for jetpack in report.jetpacks])


def _with_jetpacks(name: str, jetpacks: Sequence[str]) -> str:
    return f"{name} (JetPack {', '.join(jetpacks)})" if jetpacks else name


def _where(problem: Problem) -> str:
    if problem.node is None:
        return ""
    part = f", {problem.part}" if problem.part else ""
    more = f" and {problem.count - 1} more" if problem.count > 1 else ""
    return f"{problem.operator} {problem.node!r} ({problem.phase}{part}){more}: "
