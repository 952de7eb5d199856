"""`mla-export export`: a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import time

from mla_export.commands.tables import console, count, print_json, size
from mla_runtime.bundle import Bundle


def run(args: argparse.Namespace) -> int:
    """Export, then say what was written."""
    from mla_export.export import export

    start = time.perf_counter()
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
        chunk=args.chunk,
        force=args.force,
    )
    seconds = time.perf_counter() - start
    bundle = Bundle.open(path)
    if args.json:
        print_json({"bundle": str(path), "nbytes": bundle.nbytes, "seconds": seconds})
        return 0
    model = bundle.model
    cache = ", ".join(f"{kind} {elements}" for kind, elements in _row(bundle).items())
    console().print(
        f"{path}: {model.name} ({model.family}, {count(model.parameters)} parameters), {args.absorb}, "
        f"{size(bundle.nbytes)} in {seconds:.1f} s\n"
        f"cache a token and layer: {cache}",
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
