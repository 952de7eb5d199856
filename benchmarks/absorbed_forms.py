"""Which form of attention to export: error and time of factored, merged and expanded in every precision.

    python benchmarks/absorbed_forms.py [FOLDER]                  # both parts; a quarter of an hour of a core
    python benchmarks/absorbed_forms.py FOLDER --part errors      # or times, or prepare: what times needs

Errors are those of logits against Hugging Face's layers in float64, over held-out text of samples/tiny-mla
(another checkpoint: --checkpoint and --text). fp32, int8 and int4 are bundles on ONNX Runtime, as it reads
prompts and as it decodes token by token. fp16 and bf16 are emulated, each result rounded
(`mla_export.operators`), in the prompt's graph and in the step's, which attends in the latent space to all
tokens; their largest values are held against float16's limit. The same is done with random weights in
published shapes. Times are of steps with these shapes on one thread of ONNX Runtime's CPU provider, which
computes fp16 in fp32: there are none of 16 bits. FOLDER keeps checkpoints and bundles, 10 GB (default: a
temporary one). Results are printed, and put into benchmarks/results/absorbed-forms.json with --record. Ends
with 1 where an absorbed form in 16 bits has more than twice the RMS error of the expanded one or of Hugging
Face's layers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forms import lanes, shapes, tables, times

from mla_export.progress import reporting

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "tiny-mla"
RECORD = ROOT / "benchmarks" / "results" / "absorbed-forms.json"
ALLOWED = 2.0  # times the error of the unabsorbed computation in the same 16 bits


def errors(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows, rounded = lanes.of_text(args.checkpoint, args.text, args.tokens, args.threads, folder)
    for shape in shapes.SHAPES:
        rows += lanes.of_random_ids(shapes.checkpoint(folder, shape), shape, args.random_tokens)
    return {"rows": rows, "products": rounded}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="keeps checkpoints and bundles")
    parser.add_argument("--part", choices=("errors", "times", "prepare"), help="one part only")
    parser.add_argument("--checkpoint", type=Path, default=SAMPLE)
    parser.add_argument("--text", type=Path, default=SAMPLE / "held_out.txt")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text, in windows of 2,048")
    parser.add_argument("--random-tokens", type=int, default=512, help="for random weights")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each form at each depth")
    parser.add_argument("--threads", type=int, default=2, help="where errors are taken; times are of one")
    parser.add_argument("--record", metavar="MACHINE", help="write the record; says in words what ran it")
    args = parser.parse_args()
    at = commit() if args.record else ""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary, reporting():
        folder = args.folder or Path(temporary)
        if args.part in (None, "errors"):
            found["errors"] = errors(args, folder)
            for table in tables.of_errors(**found["errors"]):
                print(table)
        if args.part in (None, "prepare", "times"):
            times.prepare(folder)
        if args.part in (None, "times"):
            found["times"] = {"rows": list(times.measure(folder, args.rounds))}
            print(tables.of_times(found["times"]["rows"]))
    if args.record:
        write(found, args, at)
    return 1 if list(broken(found)) else 0


def broken(found: dict[str, dict[str, Any]]) -> Iterator[lanes.Row]:
    """Give the rows in 16 bits that are further off than they may be, each told."""
    for row in found.get("errors", {"rows": []})["rows"]:
        ratios = [ratio for ratio in (row.over_expanded, row.over_layers) if ratio is not None]
        if row.precision in lanes.HALVES and max(ratios, default=0.0) > ALLOWED:
            print(
                f"{row.model}, {row.precision}, {row.form} ({row.graph}): {max(ratios):.2f} times",
                file=sys.stderr,
            )
            yield row


def commit() -> str:
    """Give the commit that is checked out."""
    git = [shutil.which("git") or "git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def write(found: dict[str, dict[str, Any]], args: argparse.Namespace, at: str) -> None:
    """Put the parts that were run into the record, beside what it has of the others."""
    options = {
        "errors": f"--tokens {args.tokens} --random-tokens {args.random_tokens} --threads {args.threads}",
        "times": f"--rounds {args.rounds}",
    }
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for part, content in found.items():
        lists = {name: [asdict(entry) for entry in entries] for name, entries in content.items()}
        command = f"python benchmarks/absorbed_forms.py FOLDER --part {part} {options[part]}"
        record[part] = {"machine": args.record, "command": command, "commit": at, **lists}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
