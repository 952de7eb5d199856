"""`mla-export verify`: a bundle against its hashes, its canary and the checkpoint that it was made from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mla_export.commands.tables import STYLES, console, print_json, table
from mla_export.extras import need
from mla_export.judge import Budget, Verdict
from mla_export.verification import Verification

if TYPE_CHECKING:
    from mla_export.quality import Quality
    from mla_export.tally import Figures


def run(args: argparse.Namespace) -> int:
    """Verify and print the report; 1 where anything failed."""
    if args.checkpoint is not None:  # before a large bundle is hashed for nothing
        reading = [] if args.text is None else ["onnx_ir", "tokenizers"]
        need("onnxruntime", "torch", "transformers", *reading)
    # transformers' remarks on configurations are for those who write them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from mla_export.verify import verify

    report = verify(
        args.bundle,
        args.checkpoint,
        steps=args.steps,
        backend=args.backend,
        text=args.text,
        text_tokens=args.text_tokens,
        max_kl=args.max_kl,
    )
    if args.json:
        print_json(report.to_json())
    else:
        console().print(render(report))
    return 0 if report.passed else 1


def render(report: Verification) -> Group:
    """Lay the report out as tables and a closing line."""
    parts: list[RenderableType] = [_checks(report)]
    if report.budget is not None:
        parts += [_comparisons(report, report.budget), _greedy(report)]
    if report.quality is not None:
        parts += _quality(report.quality)
    parts += [Text(f"behind a near tie of the router: {line}", style="yellow") for line in _excused(report)]
    verdict = "passed" if report.passed else "FAILED"
    if report.passed and report.ambiguous:
        verdict = "passed, with near ties (AMBIGUOUS rows: both answers are right within rounding)"
    style = STYLES["fail" if not report.passed else "ambiguous" if report.ambiguous else "pass"]
    parts.append(Text(f"{report.bundle}: {verdict} ({report.seconds:.1f} s)", style=style))
    return Group(*parts)


def _verdict(verdict: Verdict) -> Text:
    return Text("AMBIGUOUS" if verdict == "ambiguous" else verdict, style=STYLES[verdict])


def _checks(report: Verification) -> Table:
    rows = [(check.name, _verdict(check.verdict), check.found) for check in report.checks]
    title = f"{report.bundle} on {report.backend}"
    return table(title, ("check", "verdict", "found"), rows, numbers=False)


def _comparisons(report: Verification, budget: Budget) -> Table:
    limits = [f"max {budget.max_abs:.1e}"] if budget.judges == "largest" else []
    limits.append(f"RMS {budget.rms:.1e}" + (" of the median row" if budget.judges == "median" else ""))
    title = (
        f"Logits ({report.precision}) against {report.checkpoint} in float64\n"
        f"allowed: {', '.join(limits)}, which is {budget.factor:g} × the error of {budget.peer}"
    )
    header = ("run", "rows", "max |Δ|", "RMS Δ", "1 - cosine", "KL, nats", "rank", "needs", "verdict")
    rows = [
        (
            row.name,
            str(row.errors.rows),
            f"{row.errors.max_abs:.1e}",
            f"{row.errors.rms:.1e}",
            f"{1.0 - row.errors.cosine:.1e}",
            f"{row.errors.kl:.1e}",
            str(row.errors.rank),
            f"{row.would_pass:.2f} ×",
            _verdict(row.verdict),
        )
        for row in report.comparisons
    ]
    return table(title, header, rows, spare=("1 - cosine", "rank", "KL, nats"))


def _greedy(report: Verification) -> Table:
    header = ("prompt", "agreed", "differs at", "lost by", "tie up to", "verdict")
    rows = [
        (
            row.name,
            f"{row.agreed} / {row.steps}",
            "none" if row.first_difference is None else f"step {row.first_difference}",
            "–" if row.margin is None else f"{row.margin:.1e}",
            f"{row.limit:.1e}",
            _verdict(row.verdict),
        )
        for row in report.greedy
    ]
    title = "Greedy tokens against the reference's choice after the same tokens"
    return table(title, header, rows, spare=("tie up to",))


def _quality(quality: Quality) -> Iterator[RenderableType]:
    words = (
        f"{quality.tokens:,} tokens of text in windows of {quality.window:,}, beside the checkpoint in fp32"
    )
    free = words if quality.pinned is None else f"{words}\nrouting free"
    yield _figures(free, quality.free)
    if quality.pinned is not None:
        yield _figures("routing pinned to the checkpoint's choices", quality.pinned)
        yield Text(f"routed otherwise than the checkpoint, in any layer: {quality.rerouted:.2%} of tokens")


def _figures(title: str, found: Sequence[Figures]) -> Table:
    header = ("position", "tokens", "perplexity", "in fp32", "mean KL", "99 % KL", "99.9 % KL", "same top-1")
    rows = [
        (
            "all" if row is found[0] else f"{row.first:,}-{row.last:,}",
            f"{row.tokens:,}",
            f"{row.perplexity:.3f}",
            f"{row.reference_perplexity:.3f}",
            f"{row.kl_mean:.1e}",
            f"{row.kl_99:.1e}",
            f"{row.kl_999:.1e}",
            f"{row.same_top:.2%}",
        )
        for row in found
    ]
    return table(title, header, rows, spare=("in fp32", "tokens"))


def _excused(report: Verification) -> Iterator[str]:
    """Say how much was not judged by the budget, which no verdict tells."""
    for comparison in report.comparisons:
        if comparison.behind_ties:
            yield f"{comparison.behind_ties} of {comparison.errors.rows} rows of {comparison.name!r}"
    for greedy in report.greedy:
        if greedy.behind_ties:
            yield f"{greedy.behind_ties} of {greedy.steps} greedy tokens of prompt {greedy.name}"
