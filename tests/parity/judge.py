"""Judge a bundle by two witnesses: the oracle is right, and Hugging Face's class says how far off is fair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mla_runtime
from mla_export.drive import Drive, drive
from mla_export.judge import Comparison, Greedy
from mla_export.numerics import Ground, comparisons, from_first, greedy_tokens, positions
from tests.parity.witness import Witness, token_ids

# a gate whose scores in float64 are closer than this may choose otherwise in float32
NEAR_TIE = 1e-5


@dataclass(frozen=True)
class Judgement:
    comparisons: tuple[Comparison, ...]
    greedy: tuple[Greedy, ...]

    @property
    def failed(self) -> list[Comparison | Greedy]:
        return [part for part in (*self.comparisons, *self.greedy) if part.verdict == "fail"]

    @property
    def ambiguous(self) -> list[Comparison | Greedy]:
        return [part for part in (*self.comparisons, *self.greedy) if part.verdict == "ambiguous"]


def judge(run: Drive, witness: Witness) -> Judgement:
    """Error against the oracle at most 4 times that of Hugging Face's class in fp32, and the same tokens."""
    traces = [witness.oracle(row) for row in run.rows]
    tie = [from_first(len(row), [t.margin <= NEAR_TIE]) for row, t in zip(run.rows, traces, strict=True)]
    keep = positions(run)
    ground = Ground(
        keep=keep,
        yardstick=[trace.logits[at] for trace, at in zip(traces, keep, strict=True)],
        peer=[witness.hugging_face(row)[at] for row, at in zip(run.rows, keep, strict=True)],
        lane="float32",
        behind_tie=tie,
        peer_flipped=tie,
    )
    allowed = ground.budget()
    return Judgement(comparisons(run, ground, allowed), greedy_tokens(run, ground, allowed))


def judge_bundle(bundle: Path, witness: Witness, lengths: tuple[int, ...], steps: int) -> Judgement:
    """Drive a bundle over random prompts of these lengths and judge what it computed."""
    vocab = witness.geometry.vocab_size
    prompts = [token_ids(vocab, length, seed=length) for length in lengths]
    with mla_runtime.open(bundle) as model:
        return judge(drive(model, prompts, steps), witness)


def needs(judgement: Judgement) -> float:
    """The factor on Hugging Face's error that would have passed."""
    return float(np.max([c.would_pass for c in judgement.comparisons]))
