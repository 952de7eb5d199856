"""A bundle opened on the backend that was asked for, with progress while it is hashed and loaded."""

from __future__ import annotations

import argparse

import mla_runtime
from mla_export import progress
from mla_runtime.bundle import Bundle


def open_model(args: argparse.Namespace) -> mla_runtime.Model:
    """Open `args.bundle` on `args.backend` with `args.threads` and the engines of `args.engines`."""
    size = Bundle.open(args.bundle).nbytes
    with progress.task("opening the bundle", size, "bytes") as advance:
        return mla_runtime.open(args.bundle, args.backend, args.threads, advance, args.engines)
