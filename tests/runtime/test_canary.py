"""The canary passes on the model that it was made from and on no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mla_runtime
from mla_runtime.errors import BundleError, VerificationError
from tests.runtime.handmade import make_bundle, reference

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


def expected(steps: int = 3) -> dict[str, Any]:
    """A canary from the float64 reference."""
    step_ids, top = [8, 2, 8][:steps], []
    for count in range(steps + 1):
        logits = reference([*PROMPT, *step_ids[:count]])[-1]
        best = np.argsort(-logits)[:5]
        top.append([[int(i), float(logits[i])] for i in best])
    return {"prompt_ids": PROMPT, "step_ids": step_ids, "top": top}


def result(folder: Path, canary: dict[str, Any] | None) -> mla_runtime.CanaryResult:
    with mla_runtime.open(make_bundle(folder, canary=canary), threads=1) as model:
        return mla_runtime.check_canary(model)


def test_a_right_model_passes(tmp_path: Path) -> None:
    found = result(tmp_path / "b", expected())
    assert found.entries == 4
    assert found.error < 1e-4 < found.tolerance < 1e-2


@pytest.mark.parametrize("entry", [0, 3])
def test_a_wrong_logit_fails_and_says_where(tmp_path: Path, entry: int) -> None:
    canary = expected()
    canary["top"][entry][2][1] -= 0.05
    where = ["after the prompt", "", "", "after step 3"][entry]
    with pytest.raises(VerificationError, match=rf"canary's logits {where} are 0.05 off, more than"):
        result(tmp_path / "b", canary)


def test_an_id_that_should_not_be_among_the_best_fails(tmp_path: Path) -> None:
    canary = expected(0)
    del canary["top"][0][0]
    with pytest.raises(VerificationError, match="after the prompt"):
        result(tmp_path / "b", canary)


def test_a_near_tie_does_not_fail(tmp_path: Path) -> None:
    canary = expected()
    first, second = canary["top"][3][:2]
    middle = (first[1] + second[1]) / 2
    if abs(first[1] - second[1]) < 2e-3:
        canary["top"][3][:2] = [[second[0], middle], [first[0], middle]]
    found = result(tmp_path / "b", canary)
    assert found.error <= found.tolerance


def test_a_bundle_without_canary(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the bundle has no canary"):
        result(tmp_path / "b", None)
