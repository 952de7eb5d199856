"""`mla-export export`: a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from mla_export.commands.tables import console, count, print_json, size
from mla_runtime.bundle import Bundle

if TYPE_CHECKING:
    from mla_export.quantiser import WeightErrors


def run(args: argparse.Namespace) -> int:
    """Export, then say what was written."""
    from mla_export.export import export

    start = time.perf_counter()
    told: list[WeightErrors] = []
    path = export(
        args.checkpoint,
        args.out,
        target=args.target,
        absorb=args.absorb,
        dtype=args.dtype,
        weights=args.weights,
        group=args.group,
        cache=args.cache,
        cache_rope=args.cache_rope,
        max_context=args.max_context,
        head=args.head,
        chunk=args.chunk,
        calibrate=args.calibrate,
        calibrate_tokens=args.calibrate_tokens,
        force=args.force,
        told=told.append,
    )
    seconds = time.perf_counter() - start
    bundle = Bundle.open(path)
    errors = told[0].by_parameter
    if args.json:
        relative = {"overall": told[0].overall, "by_parameter": errors} if errors else None
        print_json(
            {
                "bundle": str(path),
                "nbytes": bundle.nbytes,
                "seconds": seconds,
                "relative_rms_error_of_weights": relative,
            }
        )
        return 0
    model = bundle.model
    cache = ", ".join(f"{kind} {elements}" for kind, elements in _row(bundle).items())
    console().print(
        f"{path}: {model.name} ({model.family}, {count(model.parameters)} parameters), {args.absorb}, "
        f"{size(bundle.nbytes)} in {seconds:.1f} s\n"
        f"cache a token and layer: {cache}",
        soft_wrap=True,
    )
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        precision = bundle.manifest.precision
        console().print(
            f"{precision.weights} weights, {precision.method}: RMS error {told[0].overall:.2%} of theirs, "
            f"at most {errors[worst]:.2%} in {worst}",
            soft_wrap=True,
        )
    if bundle.text.tokenizer is None:
        console().print(
            "no tokenizer: the checkpoint has no tokenizer.json; `run` takes --ids alone with this bundle",
            soft_wrap=True,
        )
    return 0


def _row(bundle: Bundle) -> dict[str, str]:
    """Give what a layer caches of a token: kind -> shape and type, as in `latent [512] float32`."""
    return {
        tensor.holds: f"{list(tensor.row) or ''} {tensor.dtype}".strip()
        for tensor in bundle.cache
        if tensor.layer == 0
    }
