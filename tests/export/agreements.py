"""Comparisons that nobody ran: sides of every verdict, with errors as they look in earnest."""

from __future__ import annotations

import random
from dataclasses import replace

from mla_export.compare.result import Agreement, Bisection, Drift, Gate, LayerError, OperatorError, Side, Step
from mla_export.judge import Comparison, Errors, Greedy

STEPS, LAYERS, PROMPTS = 24, 6, 3


def side(
    name: str, size: float, verdict: str = "pass", precision: str = "fp32", allowed: float = 4.0
) -> Side:
    """A side whose errors are about `size`, of which `allowed` times as much may be."""
    drawn = random.Random(name)
    steps = tuple(
        Step(i, 20.0 + i, rms * 6, rms, 1 - rms**2, rms**2 / 8, 1 + (i == 3 and verdict == "ambiguous"))
        for i in range(STEPS + 1)
        for rms in [size * (1 + i / STEPS) * drawn.uniform(0.5, 1.5)]
    )
    layers = tuple(
        LayerError(layer, rows, phase, 100, rms, rms * 9, rms, 1 - rms**2, allowed * size * 3, 1, 31)
        for layer in range(LAYERS)
        for rows in ("latent", "rope", "block")
        for phase in ("prompt", "step")
        for rms in [size * (1 + layer) * drawn.uniform(0.3, 0.6)]
    )
    count = PROMPTS * (STEPS + 1)
    found = Comparison("decode", Errors(count, size * 9, size, 1 - size**2, size**2 / 8, 1), 1.3, 0, "pass")
    greedy = tuple(
        Greedy(f"{i + 1}: 9 tokens", STEPS + 1, STEPS + 1, None, None, 9 * size, 0, "pass")
        for i in range(PROMPTS)
    )
    return Side(
        name=name,
        bundle=name.partition(" on ")[0],
        backend=name.rpartition(" on ")[2],
        target="ort-cpu",
        absorb="factored",
        precision=precision,
        verdict=verdict,
        gate=Gate(
            "computed",
            "largest",
            4.0,
            size * 36,
            size * allowed,
            f"4 × the error of Hugging Face's layers in {precision}",
        ),
        logits=found,
        steps=steps,
        drift=Drift(size * 0.7, size * 1.3),
        kl=tuple(size**2 * 10 ** drawn.gauss(-1, 0.7) for _ in range(count)),
        layers=layers,
        greedy=greedy,
        seconds=1.5,
    )


def ambiguous() -> Side:
    near = side("out/int8 on ort:cpu", 2e-2, "ambiguous", "int8")
    tie = Greedy("2: 9 tokens", STEPS + 1, STEPS, 7, 3.1e-2, 0.2, 0, "ambiguous")
    return replace(near, greedy=(near.greedy[0], tie, near.greedy[2]))


def failed() -> Side:
    off = side("out/int4-broken on ort:cpu", 0.4, "fail", "int4", allowed=0.5)
    bad = replace(off.logits, verdict="fail", would_pass=8.0)
    lost = Greedy("1: 9 tokens", STEPS + 1, 3, 2, 4.5, 0.9, 0, "fail")
    operators = (
        OperatorError("layers.2.q", "mla::Linear", 1e-7, 1e-6),
        OperatorError("layers.2.attention", "mla::LatentAttention", 0.3, 1e-6),
        OperatorError("layers.2.o", "mla::Linear", None, 1e-6),
    )
    inside = Bisection(
        2, "step", 0, 40, operators, "layers.2.attention", "layers.2.attention gives 0.3 of its size."
    )
    parted = replace(off.layers[12], relative=0.9)
    return replace(off, logits=bad, greedy=(lost, *off.greedy[1:]), parted=parted, bisection=inside)


def absent() -> Side:
    why = "tensorrt-rtx is not installed; try: pip install 'mla-export[rtx]'"
    return Side(
        "out/fp32 on tensorrt-rtx", "out/fp32", "tensorrt-rtx", "portable", "factored", "fp32", "absent", why
    )


def reference() -> Side:
    return replace(
        Side("checkpoint on torch", None, "torch", None, None, "fp64", "reference"),
        layers_note="is the reference",
    )


def agreement(*sides: Side) -> Agreement:
    """A comparison of `sides`: of one that passed alone, if none is given."""
    shown = sides or (side("out/fp32 on ort:cpu", 1e-6),)
    bundles = tuple(dict.fromkeys(one.bundle for one in shown if one.bundle))
    return Agreement(
        model="tiny-mla",
        bundles=bundles,
        checkpoint="samples/tiny-mla",
        reference="the checkpoint in float64",
        forced="greedy tokens of the first side",
        prompts=(9, 9, 12),
        steps=STEPS,
        sides=shown,
        seconds=4.2,
    )


def everything() -> Agreement:
    """A comparison with a side of every kind."""
    torch = side("checkpoint on torch", 5e-7)
    return agreement(reference(), torch, side("out/fp32 on ort:cpu", 1e-6), ambiguous(), failed(), absent())
