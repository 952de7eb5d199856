"""`mla-export report`: a comparison, speeds, memory and cache bytes as one HTML file."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path

from mla_export.commands.tables import print_json, size
from mla_export.extras import need
from mla_export.one_file import check_file, write_file
from mla_export.page import page
from mla_export.page.results import Results, read_results
from mla_runtime.errors import InputError

SAID = {"fail": "FAILED", "ambiguous": "passed, with near ties (AMBIGUOUS)", "pass": "passed"}
STEPS = 64
MEASURING = ("backends", "checkpoint", "prompts", "text", "steps", "depths")


def run(args: argparse.Namespace) -> int:
    """Write the page to `args.out`; 1 where a comparison on it failed."""
    _one_of_two(args)
    needed = ["onnxruntime"] if args.bundles else []
    needed += ["onnx_ir", "torch", "transformers"] if args.checkpoint is not None else []
    need("matplotlib", *needed)
    out = Path(args.out)
    check_file(out, force=args.force)
    results = read_results(args.results) if args.results else _gathered(args)
    write_file(out, page(results, version("mla-export")), force=args.force)
    nbytes = out.stat().st_size
    if args.json:
        verdict = results.verdict or None
        print_json({"page": str(out), "nbytes": nbytes, "passed": results.passed, "verdict": verdict})
    else:
        print(f"{out}: {SAID.get(results.verdict, 'nothing was compared')}; {size(nbytes)}")
    return 0 if results.passed else 1


def _one_of_two(args: argparse.Namespace) -> None:
    """Refuse a command line that neither measures nor draws, or would do both."""
    if bool(args.bundles) == bool(args.results):
        raise InputError("give bundles to measure, or with --from results to draw: one of the two")
    given = [f"--{name}" for name in MEASURING if getattr(args, name) is not None]
    if args.results and given:
        raise InputError(
            f"--from draws what was measured before, and {given[0]} is for measuring; leave it out"
        )


def _gathered(args: argparse.Namespace) -> Results:
    # transformers' remarks on configurations are for those who write them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from mla_export.report import gather

    return gather(
        args.bundles,
        backends=args.backends,
        checkpoint=args.checkpoint,
        prompts=args.prompts,
        text=args.text,
        steps=STEPS if args.steps is None else args.steps,
        depths=args.depths,
    )
