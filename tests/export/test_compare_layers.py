"""Errors of a layer's rows: what is measured, over which tokens, against what."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mla_export.compare.layers import FLOOR, Seen, first_parted, layer_errors

NONE = [np.zeros(6, bool)]


def seen(got: np.ndarray, want: np.ndarray, prompt: int = 4) -> Seen:
    return Seen(1, "latent", [prompt], [want], [got])


def test_prompt_and_steps_are_measured_apart():
    want = np.full((6, 2), 2.0)
    got = want.copy()
    got[4:] += 0.5
    prompt, step = layer_errors(seen(got, want), NONE, median=False, allowed=0.1, factor=1.0)
    assert (prompt.phase, prompt.tokens, prompt.rms, prompt.parted) == ("prompt", 4, 0.0, False)
    assert (step.phase, step.tokens, step.rms, step.max_abs) == ("step", 2, 0.5, 0.5)
    assert step.relative == pytest.approx(0.25)
    assert step.parted
    assert step.cosine == pytest.approx(1.0)


def test_what_a_peer_errs_is_what_is_allowed_times_the_factor():
    want = np.ones((6, 2))
    peer, got = want + 0.01, want + 0.03
    prompt, _ = layer_errors(seen(got, want), NONE, median=False, allowed=[peer], factor=4.0)
    assert prompt.allowed == pytest.approx(0.04)
    assert not prompt.parted
    assert layer_errors(seen(got, want), NONE, median=False, allowed=[peer], factor=2.0)[0].parted
    # a peer that is exact allows what the numbers themselves round
    assert layer_errors(seen(got, want), NONE, median=False, allowed=[want], factor=4.0)[0].allowed == FLOOR


def test_tokens_behind_a_tie_are_left_out_unless_nothing_remains():
    want = np.ones((6, 2))
    got = want.copy()
    got[2:] += 5.0
    tie = [np.arange(6) >= 2]
    prompt, step = layer_errors(seen(got, want), tie, median=False, allowed=0.1, factor=1.0)
    assert prompt.relative == 0.0
    assert prompt.rms == pytest.approx(math.sqrt(25 / 2))
    assert step.relative == pytest.approx(5.0)


def test_of_rounded_sides_the_median_token_is_judged():
    want = np.ones((6, 2))
    got = want + 0.01
    got[3] += 50.0
    prompt, _ = layer_errors(seen(got, want), NONE, median=True, allowed=0.02, factor=1.0)
    assert prompt.relative == pytest.approx(0.01)
    assert not prompt.parted
    assert (prompt.prompt, prompt.position) == (0, 3)


def test_what_is_not_finite_parts():
    want = np.ones((6, 2))
    got = want.copy()
    got[1, 0] = np.nan
    prompt, _ = layer_errors(seen(got, want), NONE, median=False, allowed=1.0, factor=1.0)
    assert prompt.parted
    assert prompt.position == 1


def test_the_first_that_parts_is_that_of_the_first_layer_and_its_first_rows():
    (error,) = layer_errors(
        seen(np.zeros((4, 2)), np.ones((4, 2))), [np.zeros(4, bool)], median=False, allowed=0.1, factor=1.0
    )
    later = dataclasses.replace(error, layer=2)
    block = dataclasses.replace(error, rows="block")
    step = dataclasses.replace(error, phase="step")
    right = dataclasses.replace(error, layer=0, relative=0.0)
    assert first_parted([later, block, step, error, right]) is error
    assert first_parted([later, block, step, right]) is step
    assert first_parted([right]) is None
