"""Measure mla-export and its peers with the same random weights, each case in a process of its own.

    python benchmarks/peers/bench.py --peers llama.cpp mla-export --shapes dense --weights int4

Checkpoints, GGUF files, graphs and bundles are made once under --folder and kept. Results are printed
as one table a shape and kept as JSON. With --rounds N every case is measured N times, a round after
another, so that a disturbance hits more than one of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import record
from cases import HERE, PEERS, SHAPES, Case, cases
from rich.console import Console

FOLDER = Path("out/peers")


def prepare(case: Case, folder: Path) -> Path:
    """Make what the case runs on, unless it is there; give its path."""
    checkpoint = folder / case.shape / "checkpoint"
    if not checkpoint.exists():
        script = HERE.parent / "random_checkpoint.py"
        _python(str(script), str(SHAPES[case.shape]), str(checkpoint), log=_log(checkpoint))
    model = folder / case.shape / case.model
    if not model.exists():
        names = {"checkpoint": str(checkpoint), "model": str(model), "folder": str(model.parent)}
        _python(*(argument.format(**names) for argument in case.make), log=_log(model))
    return model


def measure(case: Case, model: Path, out: Path, args: argparse.Namespace) -> list[record.Record]:
    """Run one case; what was measured before a failure is kept."""
    out.unlink(missing_ok=True)
    command = [str(HERE / case.script), str(model), "--shape", case.shape, "--out", str(out)]
    command += ["--depths", *map(str, args.depths), "--prompt", str(args.prompt)]
    command += ["--steps", str(args.steps), "--threads", str(args.threads), *case.arguments]
    _python(*command, log=out.with_suffix(".log"))
    return record.load(out)


def _python(*arguments: str, log: Path) -> None:
    """Run Python with its messages going to `log`; raises CalledProcessError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        subprocess.run([sys.executable, *arguments], check=True, stdout=stream, stderr=stream)


def _log(path: Path) -> Path:
    return path.parent.parent / f"{path.parent.name}-{path.name}.log"


def chosen(args: argparse.Namespace) -> list[Case]:
    """Give the cases that the command line names."""
    return [
        case
        for shape in args.shapes
        for case in cases(shape)
        if case.peer in args.peers and case.weights in args.weights
    ]


def run(args: argparse.Namespace, console: Console) -> list[record.Record]:
    """Prepare and measure every case; one that fails is reported and left out."""
    found: list[record.Record] = []
    ready: dict[Case, Path] = {}
    for case in chosen(args):
        try:
            ready[case] = prepare(case, args.folder)
        except subprocess.CalledProcessError as error:
            console.print(f"{_name(case)}: its model cannot be made (exit {error.returncode}); left out")
    results = args.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    for turn in range(1, args.rounds + 1):
        for number, (case, model) in enumerate(ready.items(), 1):
            out = results / f"{turn}-{case.shape}-{number:02}-{case.peer}.json"
            start = time.monotonic()
            try:
                found += measure(case, model, out, args)
            except subprocess.CalledProcessError as error:
                log = out.with_suffix(".log")
                console.print(f"{_name(case)}: failed (exit {error.returncode}), see {log}")
                found += record.load(out) if out.exists() else []
            seconds = time.monotonic() - start
            console.print(f"round {turn}, {number} of {len(ready)}: {_name(case)}, {seconds:.0f} s")
    return record.merge(found)


def _name(case: Case) -> str:
    return " ".join((case.shape, case.peer, case.weights, *case.arguments))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"kept between runs ({FOLDER})")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--weights", nargs="+", choices=("float", "int8", "int4"), default=["int8", "int4"])
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 2048, 8192])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt, at depth 0")
    parser.add_argument("--steps", type=int, default=16, help="timed steps at each depth")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    console = Console()
    records = run(args, console)
    record.save(records, args.folder / "results.json")
    for shape in args.shapes:
        of_shape = [r for r in records if r.shape == shape]
        if of_shape:
            console.print(record.table(shape, of_shape))
    for build in sorted({f"{r.peer}: {r.version}; {r.build}" for r in records}):
        console.print(build, highlight=False)


if __name__ == "__main__":
    main()
