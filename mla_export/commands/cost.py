"""`mla-export cost`: what fits which device, in which formats, and how fast it can be at most."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from mla_export.commands.inspect import FORM_NAMES
from mla_export.commands.tables import console, count, print_json, size, table
from mla_export.costs import parameters
from mla_export.devices import choose
from mla_export.estimate import Estimate, Model, OnDevice, Request, as_json, on_device
from mla_export.weight_bytes import SHORT
from mla_runtime.wording import counted

DETAILED = 3  # so many devices are shown in full, more as one line each
NONE = "–"


def run(args: argparse.Namespace) -> int:
    """Estimate `args.model` on `args.device` at `args.context` and print tables."""
    model = Model.read(args.model)
    devices = choose(args.device)
    request = Request.of(model, args.context, args.batch, args.chunk)
    found = [on_device(model, device, request) for device in devices]
    if args.json:
        print_json(as_json(model, request, found))
    else:
        show(model, request, found, console())
    return 0


def show(model: Model, request: Request, found: Sequence[OnDevice], out: Console) -> None:
    """Print a table of bytes, then a table a device, or one of all where there are many."""
    g = model.geometry
    kind = {"config": "configuration only", "checkpoint": "checkpoint", "bundle": "bundle"}[model.kind]
    sequences = "" if request.batch == 1 else f", {counted(request.batch, 'sequence')} at once"
    total = count(parameters(g).total)
    out.print(
        f"{model.path}: {g.family}, {total} parameters, {kind}{sequences}", style="bold", soft_wrap=True
    )
    out.print()
    for _, group in groupby(sorted(found, key=_floats), key=_floats):
        first = next(group)
        out.print(_weights_table(first))
        out.print(_cache_table(first, request))
    if len(found) > DETAILED:
        out.print(_overview(model, request, found))
    else:
        for entry in found:
            device = entry.device
            about = f"{size(device.usable)} of {size(device.memory)} usable, {device.bandwidth / 1e9:g} GB/s"
            out.print(f"{device.title}: {about}", style="bold")
            out.print()
            out.print(_device_table(entry, request))
            out.print(_forms_table(entry, request))
            for line in _crossing_lines(entry):
                out.print(line)
            out.print()
    for line in _notes(request, found):
        out.print(line, style="dim")


def _floats(entry: OnDevice) -> str:
    return entry.device.floats


def _weights_table(entry: OnDevice) -> Table:
    rows = {
        _name(entry, estimate).partition("/")[0]: (size(estimate.weights), size(estimate.step_weights))
        for estimate in _shown(entry)
    }
    header = ("weights", "in all", "a step reads")
    return table("Weights", header, [(name, *cells) for name, cells in rows.items()])


def _cache_table(entry: OnDevice, request: Request) -> Table:
    rows = {}
    for estimate in _shown(entry):
        name = _name(entry, estimate).rpartition("/")[2]
        own = "this bundle: " if estimate is entry.own else ""
        rows[own + name] = (size(estimate.cache_token), *(size(point.cache) for point in estimate.points))
    header = ("cache", "a token", *(f"at {short(context)}" for context in request.contexts))
    return table("Cache", header, [(name, *cells) for name, cells in rows.items()])


def _device_table(entry: OnDevice, request: Request) -> Table:
    rows = [
        (
            _name(entry, estimate),
            *(rate(point.step_rate) if point.fits else NONE for point in estimate.points),
            *(rate(point.prompt_rate) if point.fits else NONE for point in estimate.points),
            f"{estimate.longest:,}" if estimate.longest else "does not fit",
        )
        for estimate in _shown(entry)
    ]
    steps = [f"step {short(context)}" for context in request.contexts]
    prompts = [f"prompt {short(context)}" for context in request.contexts]
    header = ("weights/cache", *steps, *prompts, "longest context")
    return table("Tokens/s at most", header, rows, spare=prompts[:-1])


def _forms_table(entry: OnDevice, request: Request) -> Table:
    """Compare the forms of attention in the finest weights that fit the shortest context, floats cached."""
    plain = [e for e in entry.estimates if e.formats.cache == "float"]
    fitting = [e.formats.weights for e in plain if e.formats.absorb == "factored" and e.points[0].fits]
    weights = fitting[0] if fitting else "int4"
    chosen = [estimate for estimate in plain if estimate.formats.weights == weights]
    rows = [
        (
            FORM_NAMES[estimate.formats.absorb],
            size(estimate.step_weights),
            size(estimate.cache_token),
            *(rate(point.step_rate) if point.fits else NONE for point in estimate.points),
            f"{estimate.longest:,}" if estimate.longest else "does not fit",
        )
        for estimate in chosen
    ]
    steps = [f"step {short(context)}" for context in request.contexts]
    header = ("form", "a step reads", "cache a token", *steps, "longest context")
    return table(f"Forms of attention, {chosen[0].formats.words}", header, rows)


def _crossing_lines(entry: OnDevice) -> Iterator[str]:
    for (form, than), group in groupby(
        sorted(entry.crossings, key=lambda f: (f.than, f.form)), key=lambda f: (f.form, f.than)
    ):
        said: dict[str, list[str]] = {}
        for faster in group:
            weights = SHORT[entry.device.floats] if faster.weights == "float" else faster.weights
            said.setdefault(faster.where.words, []).append(weights)
        parts = [where if len(said) == 1 else f"{where} ({', '.join(of)})" for where, of in said.items()]
        article = "an" if than == "expanded" else "a"
        yield f"A {form} step is shorter than {article} {than} one: {', '.join(parts)}."


def _overview(model: Model, request: Request, found: Sequence[OnDevice]) -> Table:
    rows = []
    for entry in found:
        cells = (_cell(model, entry, i) for i in range(len(request.contexts)))
        bandwidth = f"{entry.device.bandwidth / 1e9:g} GB/s"
        rows.append((entry.device.name, size(entry.device.usable), bandwidth, *cells))
    if model.own is None:
        title = "Finest weights/cache that fit, and tokens/s of a step at most"
    else:
        title = f"This bundle ({model.own.absorb}, {model.own.words}): tokens/s of a step at most"
    header = ("device", "usable", "bandwidth", *(short(context) for context in request.contexts))
    return table(title, header, rows, spare=("bandwidth", "usable"))


def _cell(model: Model, entry: OnDevice, context: int) -> str:
    candidates = entry.usual if model.own is None or entry.own is None else [entry.own]
    for estimate in candidates:
        point = estimate.points[context]
        if point.fits:
            words = "" if model.own is not None else f"{estimate.formats.words} "
            return f"{words}{rate(point.step_rate):>6}"
    return NONE


def _shown(entry: OnDevice) -> list[Estimate]:
    return ([] if entry.own is None else [entry.own]) + entry.usual


def _name(entry: OnDevice, estimate: Estimate) -> str:
    if estimate is not entry.own:
        return estimate.formats.words
    form = estimate.formats.absorb
    return f"this bundle{'' if form == 'factored' else f', {form}'}: {estimate.formats.words}"


def _notes(request: Request, found: Sequence[OnDevice]) -> Iterator[str]:
    yield (
        "At most: each part of the network takes the longer of reading over bandwidth and computing over the "
        "dense rate, INT8's with weights or rows in integers. Kernels that reach neither come on top."
    )
    yield (
        f"{NONE} does not fit: weights, cache, and workspace of a prompt in chunks of {request.chunk} "
        "(--chunk), most of it scores."
    )
    if any(entry.device.floats == "float16" for entry in found):
        yield (
            "What is not in int8 or int4 is fp16 here: W_UK and W_UV, scales, float caches. Bundles for "
            "ort-cpu hold it in fp32."
        )


def short(context: int) -> str:
    """Write a number of tokens as it can be given: 4k, 160k, 1,000."""
    return f"{context // 1024}k" if context % 1024 == 0 else f"{context:,}"


def rate(value: float) -> str:
    """Write tokens a second with at least two digits."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
