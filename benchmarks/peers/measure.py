"""Measure any engine the same way: the loop that every peer's runner shares, and its command line."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from record import Record, save

WARM_UP_STEPS = 2
WARM_UP_PROMPT = 32
PROMPT_REPEATS = 2


class Engine(Protocol):
    """One sequence on one model."""

    vocab_size: int

    def fill(self, depth: int) -> None:
        """Have exactly `depth` rows in the cache; what they hold does not matter."""

    def decode(self, ids: Sequence[int]) -> object:
        """Append `ids` to the sequence and compute the last one's logits, here and now."""


@dataclass(frozen=True, slots=True)
class About:
    """What a runner says of itself and of what it runs: see `Record`."""

    peer: str
    version: str
    build: str
    shape: str
    weights: str
    cache: str
    options: str
    cache_bytes_per_token: int


def parser(description: str) -> argparse.ArgumentParser:
    """Give the options that every runner has."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("model", type=Path, help="what is run")
    out.add_argument("--shape", required=True, help="its name in the results")
    out.add_argument("--depths", type=int, nargs="+", default=[0, 2048, 8192])
    out.add_argument("--prompt", type=int, default=512, help="tokens of the prompt, timed at depth 0")
    out.add_argument("--steps", type=int, default=16, help="timed steps at each depth")
    out.add_argument("--threads", type=int, required=True)
    out.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    return out


def rows(args: argparse.Namespace) -> int:
    """How many cache rows a run takes at most."""
    depths: list[int] = args.depths
    prompt: int = args.prompt
    steps: int = args.steps
    return max(depths) + max(prompt, steps + WARM_UP_STEPS)


def run(engine: Engine, about: About, args: argparse.Namespace) -> None:
    """Measure at every depth of `args` and write the records to its `out`."""
    records = []
    random = np.random.default_rng(1)
    for depth in args.depths:
        rate = _prompt_rate(engine, random, args.prompt) if depth == 0 else None
        times = _step_seconds(engine, random, depth, args.steps)
        record = Record(
            peer=about.peer,
            version=about.version,
            build=about.build,
            shape=about.shape,
            weights=about.weights,
            cache=about.cache,
            options=about.options,
            threads=args.threads,
            depth=depth,
            steps=args.steps,
            step_ms_median=float(np.median(times)) * 1e3,
            step_ms_best=min(times) * 1e3,
            prompt_tokens=args.prompt,
            prompt_tokens_per_second=rate,
            cache_bytes_per_token=about.cache_bytes_per_token,
            peak_bytes=peak_bytes(),
        )
        records.append(record)
        save(records, args.out)
        print(f"depth {depth}: {record.step_ms_median:.1f} ms (best {record.step_ms_best:.1f})", end="")
        print(f", prompt {rate:.1f} tokens/s" if rate else "", flush=True)


def _prompt_rate(engine: Engine, random: np.random.Generator, tokens: int) -> float:
    ids = random.integers(engine.vocab_size, size=tokens).tolist()
    engine.fill(0)
    engine.decode(ids[:WARM_UP_PROMPT])
    seconds = []
    for _ in range(PROMPT_REPEATS):
        engine.fill(0)
        start = time.perf_counter()
        engine.decode(ids)
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds)


def _step_seconds(engine: Engine, random: np.random.Generator, depth: int, steps: int) -> list[float]:
    engine.fill(depth)
    seconds = []
    for token in random.integers(engine.vocab_size, size=WARM_UP_STEPS + steps).tolist():
        start = time.perf_counter()
        engine.decode([token])
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP_STEPS:]


def peak_bytes() -> int:
    """Give this process's peak resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
