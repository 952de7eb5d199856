"""`mla-export compare`: bundles on backends against one reference, over a whole decode."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mla_export.commands.tables import STYLES, console, print_json, table
from mla_export.compare.agreement import compare
from mla_export.compare.result import Agreement, Bisection, LayerError, Side
from mla_export.extras import need
from mla_runtime.wording import counted

STYLE = {**STYLES, "reference": "bold", "absent": "dim"}
SHOWN_STEPS = 5  # of a table by step: the first, the last, and between them


def run(args: argparse.Namespace) -> int:
    """Compare and print what was found; 1 where a side is beyond its gate."""
    need("onnxruntime", *([] if args.checkpoint is None else ["onnx_ir", "torch", "transformers"]))
    # transformers' remarks on configurations are for those who write them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    found = compare(
        args.bundles,
        backends=args.backends,
        checkpoint=args.checkpoint,
        prompts=args.prompts,
        text=args.text,
        steps=args.steps,
        bisect=args.bisect,
    )
    if args.json:
        print_json(found.to_json())
    else:
        console().print(render(found))
    return 0 if found.passed else 1


def render(found: Agreement) -> Group:
    """Lay the comparison out as tables and a closing line."""
    numbered = [side for side in found.sides if side.logits is not None]
    parts: list[RenderableType] = [_logits(found)]
    parts += [Text(f"{side.name}: {side.reason}", style="dim") for side in found.sides if side.reason]
    parts += [Text(line, style="dim") for line in _medians(numbered)]
    parts.append(_steps(found, numbered))
    if any(side.layers for side in numbered):
        parts.append(_layers(numbered))
    parts.append(_tokens(numbered))
    parts += [_bisection(side, side.bisection) for side in numbered if side.bisection is not None]
    parts += [Text(line) for line in _parted(numbered)]
    verdict = "all sides agree with the reference" if found.passed else "FAILED: not all sides agree"
    if found.passed and found.ambiguous:
        verdict += ", with near ties (AMBIGUOUS: both answers are right within rounding)"
    style = STYLES["fail" if not found.passed else "ambiguous" if found.ambiguous else "pass"]
    parts.append(Text(f"{found.model}: {verdict} ({found.seconds:.1f} s)", style=style))
    return Group(*parts)


def _verdict(verdict: str) -> Text:
    return Text("AMBIGUOUS" if verdict == "ambiguous" else verdict, style=STYLE[verdict])


def _logits(found: Agreement) -> Table:
    title = (
        f"Logits against {found.reference}\n"
        f"{counted(len(found.prompts), 'prompt')}, then {counted(found.steps, 'forced token')} each "
        f"({found.forced})"
    )
    header = (
        "side", "max |Δ|", "RMS Δ", "1 - cosine", "KL, nats", "rank", "drift", "allowed", "needs", "verdict"
    )  # fmt: skip
    rows = [_logits_row(side) for side in found.sides]
    return table(title, header, rows, spare=("1 - cosine", "rank", "drift", "KL, nats"))


def _logits_row(side: Side) -> Sequence[str | Text]:
    if side.logits is None or side.gate is None:
        return (side.name, *["–"] * 8, _verdict(side.verdict))
    e = side.logits.errors
    return (
        side.name,
        f"{e.max_abs:.1e}",
        f"{e.rms:.1e}",
        f"{1.0 - e.cosine:.1e}",
        f"{e.kl:.1e}",
        str(e.rank),
        "–" if side.drift is None else f"{side.drift.ratio:.2f} ×",
        f"{side.gate.rms:.1e}",
        f"{side.logits.would_pass:.2f} of {side.gate.factor:g}",
        _verdict(side.verdict),
    )


def _medians(sides: Sequence[Side]) -> Iterator[str]:
    """Say of sides whose median token is judged what the columns of all tokens do not show."""
    for side in sides:
        if side.gate is None or side.gate.judges != "median" or side.logits is None:
            continue
        of_median = side.logits.would_pass / side.gate.factor * side.gate.rms
        line = f"{side.name}: allowed is for the median token, which is off by {of_median:.1e} RMS"
        if (bulk := side.bulk) is not None:
            line += f"; mean KL of all but the furthest 5 %: {bulk.kl:.1e}, {bulk.kl_allowed:.1e} allowed"
            if bulk.prompt is not None:
                line += (
                    f"; the median of prompt {bulk.prompt + 1}: {bulk.prompt_rms:.1e}, "
                    f"{bulk.prompt_allowed:.1e} allowed"
                )
        yield line


def _steps(found: Agreement, sides: Sequence[Side]) -> Table:
    at = sorted({round(i * found.steps / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    header = ("side", *("prompt" if step == 0 else f"step {step}" for step in at))
    rows = [(side.name, *(f"{side.steps[step].rms:.1e}" for step in at)) for side in sides if side.steps]
    return table("RMS error of the logits by step", header, rows)


def _layers(sides: Sequence[Side]) -> Table:
    header = ("side", "latent rows", "rotary keys", "block outputs", "first that parts")
    rows = []
    for side in sides:
        cells = []
        for kind in ("latent", "rope", "block"):
            of_kind = [layer for layer in side.layers if layer.rows == kind]
            worst = max(of_kind, key=_share, default=None)
            cells.append("–" if worst is None else f"{worst.relative:.1e} at {worst.layer}")
        parted = "none" if side.parted is None else _where(side.parted)
        rows.append((side.name, *cells, parted))
    title = "Rows of the layers: the error nearest to what is allowed, in shares of their size, and its layer"
    return table(title, header, rows)


def _share(layer: LayerError) -> float:
    return layer.relative / layer.allowed if layer.allowed else 0.0


def _where(error: LayerError) -> str:
    kinds = {"latent": "latent rows", "rope": "rotary keys", "block": "block output"}
    return f"layer {error.layer}, {kinds[error.rows]}, {error.phase}"


def _tokens(sides: Sequence[Side]) -> Table:
    header = ("side", "prompt", "agreed", "differs at", "lost by", "tie up to", "verdict")
    rows = [row for side in sides for row in _token_rows(side)]
    title = "Greedy tokens of each side against the reference's choice after the same tokens"
    return table(title, header, rows, spare=("tie up to",))


def _token_rows(side: Side) -> Iterator[Sequence[str | Text]]:
    """Give a row a prompt, or one for all of them where nothing differs."""
    limit = f"{side.greedy[0].limit:.1e}" if side.greedy else "–"
    if all(row.first_difference is None for row in side.greedy):
        steps = sum(row.steps for row in side.greedy)
        yield side.name, "all", f"{steps} / {steps}", "none", "–", limit, _verdict("pass")
        return
    for place, row in enumerate(side.greedy):
        at = "none" if row.first_difference is None else f"step {row.first_difference}"
        lost = "–" if row.margin is None else f"{row.margin:.1e}"
        agreed = f"{row.agreed} / {row.steps}"
        yield side.name if place == 0 else "", row.name, agreed, at, lost, limit, _verdict(row.verdict)


def _bisection(side: Side, found: Bisection) -> Table:
    title = (
        f"{side.name}: {'head' if found.layer is None else f'layer {found.layer}'} operator by operator, "
        f"{found.phase} graph, prompt "
        f"{found.prompt + 1}, position {found.position}\n{found.found}"
    )
    header = ("operator", "kind", "error", "allowed", "verdict")
    rows = [
        (
            one.name,
            one.op_type,
            "not to be seen" if one.relative is None else f"{one.relative:.1e}",
            f"{one.allowed:.1e}",
            _verdict("fail" if one.parted else "pass"),
        )
        for one in found.operators
    ]
    return table(title, header, rows)


def _parted(sides: Sequence[Side]) -> Iterator[str]:
    for side in sides:
        if side.layers_note:
            yield f"{side.name}: {side.layers_note}"
        if side.parted is not None:
            e = side.parted
            yield (
                f"{side.name} parts first at {_where(e)}: {e.relative:.1e} of its size, {e.allowed:.1e} "
                f"allowed; furthest off at prompt {e.prompt + 1}, position {e.position}"
            )
