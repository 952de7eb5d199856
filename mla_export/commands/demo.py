"""`mla-export demo`: every command on one small model, each step told before it is shown."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import mla_runtime
from mla_export import progress
from mla_export.cli import EXIT_OK
from mla_export.commands import bench
from mla_export.commands.tables import console, size, table
from mla_export.sample import SAMPLE, sample_checkpoint
from mla_runtime import Bundle, Speed
from mla_runtime.errors import CheckpointError
from mla_runtime.wording import counted

PROMPT = "def read_"
ROUNDS = 3
DEEPEST = 3072  # rows of cache at which the two forms are compared, if the model's context has them
NEXT = (
    "inspect MODEL",
    "export MODEL BUNDLE",
    "verify BUNDLE --checkpoint MODEL",
    'run BUNDLE --prompt "Once upon a time"',
)


class _StepFailedError(Exception):
    """A command of the demo ended with a code that is not 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run(args: argparse.Namespace) -> int:
    """Show inspect, export, verify, run, bench and the comparison with an expanded cache."""
    source = str(_checkpoint(args.checkpoint))
    with contextlib.ExitStack() as stack:
        if args.keep is None:
            args.keep = stack.enter_context(tempfile.TemporaryDirectory(prefix="mla-export-demo-"))
        folder = Path(args.keep)
        folder.mkdir(parents=True, exist_ok=True)
        quietly = ["--quiet"] if args.quiet else []
        try:
            _make_and_prove(source, str(folder / "absorbed"), quietly)
            _use(source, str(folder / "absorbed"), str(folder / "expanded"), quietly)
        except _StepFailedError as failed:
            return failed.code
    _tell("The same with a model of yours")
    for words in NEXT:
        console().print(f"  mla-export {words}")
    return EXIT_OK


def _checkpoint(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    if (found := sample_checkpoint()) is not None:
        return found
    raise CheckpointError(
        f"{SAMPLE}: not found; it is part of the source tree; run the demo there, or use --checkpoint"
    )


def _make_and_prove(source: str, bundle: str, quietly: list[str]) -> None:
    _tell(
        "1. What is in the checkpoint, and what would each form of attention cost?",
        "Read from config.json and the headers of the weights. Multi-head Latent Attention can cache one",
        "latent row a token instead of keys and values of every head: the second table is the difference.",
    )
    _command("inspect", source, after=quietly)

    _tell(
        "2. Write it as an ONNX bundle",
        "W_UK and W_UV, which make keys and values out of a latent row, move to the query and to the",
        "output (absorption), so that the cache stays latent. Each kind of layer is traced once.",
    )
    _command("export", source, bundle, "--force", after=quietly)

    _tell(
        "3. Prove that the bundle computes what the checkpoint computes",
        "The hash of every file, the logits recorded at export, then logits and greedy tokens beside",
        "those of Hugging Face's own classes on the original weights.",
    )
    _command("verify", bundle, "--checkpoint", source, after=quietly)


def _use(source: str, bundle: str, baseline: str, quietly: list[str]) -> None:
    _tell(
        "4. Decode text with it",
        "The command `run` needs NumPy, ONNX Runtime and a tokenizer, and no torch.",
    )
    opened = Bundle.open(bundle)
    prompt = ("--ids", "1") if opened.text.tokenizer is None else ("--prompt", PROMPT)
    sampling = ("--max-tokens", "96", "--temperature", "0.7", "--seed", "1")
    _command("run", bundle, *prompt, *sampling, after=quietly)

    _tell(
        "5. Measure it",
        "A prompt goes through one graph in chunks, steps go through another, which copies no cache.",
        "Depth is how many tokens the cache holds already.",
    )
    context = opened.model.max_context
    depth = min(DEEPEST, context * 3 // 4)
    depths = ("--depths", f"0,{depth // 2},{depth}", "--prompt", str(min(256, context // 4)))
    _command("bench", bundle, *depths, after=quietly)

    _tell(
        "6. What does the latent cache save?",
        "The same checkpoint once more, with keys and values of every head in the cache. The bytes are those",
        "of any such cache. The times are this baseline's own: it keeps rows in the order of tokens, as the",
        "latent form does, and a step has to transpose them.",
    )
    _command("export", source, baseline, "--absorb", "expanded", "--force", after=quietly)
    _compare({"latent": bundle, "expanded": baseline}, depth)


def _command(*words: str, after: list[str]) -> None:
    """Run a command as one would type it: in a process of its own, so that its memory is its own too."""
    console().print(f"$ mla-export {shlex.join(words)}", style="bold", soft_wrap=True)
    sys.stdout.flush()
    code = subprocess.run([sys.executable, "-m", "mla_export", *words, *after], check=False).returncode
    if code != EXIT_OK:
        raise _StepFailedError(code)


def _tell(title: str, *lines: str) -> None:
    """Print a heading and what the reader is about to see."""
    out = console()
    out.print()
    out.rule(title, align="left", characters="─")
    for line in lines:
        out.print(line)
    out.print()


def _compare(bundles: dict[str, str], depth: int) -> None:
    """Print cache bytes and step time of bundles side by side; ratios are to the first."""
    measured: dict[str, tuple[int, Speed]] = {}
    with progress.task("comparing", ROUNDS * len(bundles)) as advance:
        for _ in range(ROUNDS):  # in turns, and the best of each: other programs come and go
            for name, path in bundles.items():
                with mla_runtime.open(path) as model:
                    (speed,) = mla_runtime.measure(model, [depth], prompt_tokens=16, steps=64)
                    found = (bench.row_bytes(model.bundle), speed)
                measured[name] = min(measured.get(name, found), found, key=lambda one: one[1].step_seconds)
                advance(1)
    base_row, base = next(iter(measured.values()))
    rows = [
        (
            name,
            size(row),
            f"{row / base_row:.1f}×",
            size(speed.cache_bytes),
            f"{speed.step_seconds * 1e3:.2f}",
            f"{speed.step_seconds / base.step_seconds:.1f}×",
        )
        for name, (row, speed) in measured.items()
    ]
    header = ("cache", "bytes a token", "ratio", f"at {depth:,}", "step ms", "ratio")
    out = console()
    out.print()
    out.print(
        table(
            f"Latent against expanded cache at {counted(depth, 'token')}, the best of {ROUNDS} rounds",
            header,
            rows,
        )
    )
