"""`mla-export verify`: a bundle against its hashes, its canary and the checkpoint that it was made from."""

from __future__ import annotations

import argparse
import os

from mla_export.commands.tables import console, print_json


def run(args: argparse.Namespace) -> int:
    """Verify and print the report; 1 where anything failed."""
    # transformers' remarks on configurations are for those who write them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from mla_export.report import render
    from mla_export.verify import verify

    report = verify(args.bundle, args.checkpoint, steps=args.steps, backend=args.backend)
    if args.json:
        print_json(report.to_json())
    else:
        console(markup=True).print(render(report))
    return 0 if report.passed else 1
