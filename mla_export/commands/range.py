"""`mla-export range`: whether float16 holds what a bundle computes, node by node, before a card is asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mla_export import progress
from mla_export.commands.tables import STYLES, console, print_json, table
from mla_export.extras import need
from mla_export.ranges import LIMIT, ROUNDS_AWAY, Ranges, Reached, look
from mla_runtime.bundle import Bundle
from mla_runtime.wording import counted

SHOWN = 10  # operators of the table, the nearest to the limit
STYLE = {"fine": STYLES["pass"], "close": STYLES["ambiguous"], "overflow": STYLES["fail"]}


def run(args: argparse.Namespace) -> int:
    """Compute the bundle node by node and print what was found; 1 where float16 does not hold it."""
    need("onnx_ir", "torch")
    bundle = Bundle.open(args.bundle)
    with progress.task("opening the bundle", bundle.nbytes, "bytes") as advance:
        bundle.ensure_hashed(advance)
    found = look(bundle, prompts=args.prompts, text=args.text, steps=args.steps)
    if args.json:
        print_json(found.to_json())
    else:
        console().print(render(found))
    return 0 if found.passed else 1


def render(found: Ranges) -> Group:
    """Lay out the operators that come nearest to the limit, what rounding costs, and the verdict."""
    worst = _worst(found.nodes)
    parts: list[RenderableType] = [_operators(found, worst[:SHOWN])]
    if rest := worst[SHOWN:]:
        parts.append(
            Text(f"{counted(len(rest), 'other operator')}: at most {rest[0].largest:,.1f}", style="dim")
        )
    parts.append(Text(_sums(found.nodes), style="dim"))
    parts.append(_rounding(found))
    parts += [Text(line, style=STYLE["overflow"]) for line in _advice(found)]
    words = {"fine": "float16 holds it", "close": "float16 holds it, with less than a factor of 2 to spare"}
    fit = worst[0].fit if found.passed else "overflow"
    verdict = words.get(fit, "OVERFLOW: float16 does not hold it")
    parts.append(Text(f"{found.bundle}: {verdict} ({found.seconds:.1f} s)", style=STYLE[fit]))
    return Group(*parts)


def _worst(nodes: Sequence[Reached]) -> list[Reached]:
    """Give of each operator the node of the layer where it came nearest to the limit, the nearest first."""
    by_operator: dict[str, Reached] = {}
    for node in nodes:
        known = by_operator.get(node.operator)
        if known is None or _order(node) > _order(known):
            by_operator[node.operator] = node
    return sorted(by_operator.values(), key=_order, reverse=True)


def _sums(nodes: Sequence[Reached]) -> str:
    """Say whether products would fit if a kernel summed them in float16 too."""
    sums, node = max((node.sums or 0.0, node.node) for node in nodes)
    if sums < ROUNDS_AWAY:
        return f"Products fit in any order of their sums, in float16 too: at most {sums:,.1f} ({node})"
    return f"Products need sums in float32: partial ones may come to {sums:,.0f} ({node})"


def _order(node: Reached) -> tuple[bool, float]:
    return node.fit == "overflow", node.largest


def _operators(found: Ranges, worst: Sequence[Reached]) -> Table:
    tokens = sum(found.prompts)
    title = (
        f"Largest float16 results, of at most {LIMIT:,.0f}\n{counted(len(found.prompts), 'prompt')} of "
        f"{counted(tokens, 'token')}, then {counted(found.steps, 'forced token')} each ({found.forced})"
    )
    header = ("operator", "node", "layer", "largest", "of limit", "at position", "subnormal", "verdict")
    rows = [
        (
            node.operator,
            node.op_type,
            "–" if node.layer is None else str(node.layer),
            f"{node.largest:,.1f}",
            f"{node.share:.4f}",
            f"{node.phase} {node.prompt + 1}, {_positions(node)}",
            f"{node.subnormal:.2%}",
            Text(node.fit, style=STYLE[node.fit]),
        )
        for node in worst
    ]
    return table(title, header, rows, spare=("subnormal", "node"))


def _where(node: Reached) -> str:
    return f"{node.phase} {node.prompt + 1}, position{'s' * (node.first < node.last)} {_positions(node)}"


def _positions(node: Reached) -> str:
    return str(node.first) if node.first == node.last else f"{node.first}–{node.last}"


def _rounding(found: Ranges) -> Table:
    r = found.rounding
    title = "Logits with every float16 result rounded, beside the same graphs in float32"
    header = (
        "tokens",
        "finite",
        "RMS Δ",
        "median token",
        "of their RMS",
        "max |Δ|",
        "KL, nats",
        "same top-1",
    )
    figures = [r.rms, r.median, r.relative, r.max_abs, r.kl]
    row = (
        str(r.tokens),
        str(r.finite),
        *("–" if figure is None else f"{figure:.1e}" for figure in figures),
        "–" if r.same_top is None else f"{r.same_top:.2%}",
    )
    return table(title, header, [row])


def _advice(found: Ranges) -> list[str]:
    """Say what overflows first, how far a type would have to reach, and what to do."""
    if found.passed:
        return []
    if not found.overflowing:
        return ["logits are not finite, though no float16 result is too large; verify the bundle"]
    first = found.overflowing[0]
    layers = sorted({node.layer for node in found.overflowing if node.layer is not None})
    what = "the residual stream of " if first.operator.endswith("residual") else ""
    where = "outside of the layers" if first.layer is None else f"{what}layer {first.layer}"
    more = f"; all of them in layers {', '.join(map(str, layers))}" if layers[1:] else ""
    return [
        f"{first.node} ({first.op_type}) is the first of {counted(len(found.overflowing), 'node')} that "
        f"float16 cannot hold: {where}, {first.largest:,.0f} at {_where(first)}{more}",
        "export with --dtype fp32: a card would give infinities here, which the CPU does not show",
    ]
