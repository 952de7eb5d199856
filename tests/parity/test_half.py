"""fp16 by ratio, with every node rounded to fp16: ONNX Runtime computes such graphs in fp32 on a CPU.

onnx's reference evaluator runs the standard operators in NumPy, in the type that the graph says, one node at
a time. It takes the step graph, which has no control flow and any number of new tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.checkpoints import FAMILIES
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import token_ids

ROWS, LENGTH = 16, 64  # 1,024 tokens
LARGEST = float(np.finfo(np.float16).max)


def rounded(bundle: Path, rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Every value of the step graph, by name, each node rounded to the type that it stands in."""
    graph = RawGraph(bundle, "step")
    count, width = len(rows), len(rows[0])
    feed: dict[str, Any] = {
        "input_ids": np.array(rows),
        "position_ids": np.tile(np.arange(width), (count, 1)),
        "past_lengths": np.zeros(count, dtype=np.int64),
        "new_lengths": np.full(count, width),
        "logit_rows": np.arange(count * width),
        **graph.empty(count),
    }
    model = onnx.load(bundle / graph.bundle.manifest.graphs["step"].file)
    found = ReferenceEvaluator(model).run(None, feed, intermediate=True)
    assert isinstance(found, dict)
    return found


def largest(values: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest fp16 value that some node gave, and the node's output; masks' -inf are no overflow."""
    sizes = {
        name: float(np.abs(np.where(np.isneginf(v), 0, v)).max())
        for name, v in values.items()
        if isinstance(v, np.ndarray) and v.dtype == np.float16 and v.size
    }
    # a NaN comes of an overflow before it, which stands first
    name = max(sizes, key=lambda n: np.inf if np.isnan(sizes[n]) else sizes[n])
    return sizes[name], name


@pytest.mark.parametrize("absorb", ["factored", "merged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rms_error_is_at_most_twice_that_of_the_plain_model(witness, bundle, family, absorb):
    w = witness(family)
    rows = [token_ids(w.geometry.vocab_size, LENGTH, seed=seed) for seed in range(ROWS)]
    values = rounded(bundle(family, absorb, "fp16"), rows)
    want = np.concatenate([w.oracle(row).logits for row in rows])
    plain = np.concatenate([w.layered(row, "float16").logits for row in rows])
    ours, theirs = (np.sqrt(((x - want) ** 2).mean(-1)) for x in (values["logits"], plain))
    assert np.sqrt((ours**2).mean()) <= 2 * np.sqrt((theirs**2).mean())
    # routing flips make the tail of either; the median token has none
    assert np.median(ours) <= 2 * np.median(theirs)
    assert np.median(ours) > 1e-4, "nothing was rounded"
    assert largest(values)[0] < LARGEST / 16


def test_onnxruntime_on_a_cpu_proves_nothing_about_fp16(witness, bundle):
    w = witness("youtu")
    rows = [token_ids(w.geometry.vocab_size, LENGTH, seed=seed) for seed in range(4)]
    want = np.concatenate([w.oracle(row).logits for row in rows])
    made = bundle("youtu", "factored", "fp16")
    emulated = rounded(made, rows)["logits"] - want
    runtime = RawGraph(made, "step")(rows)["logits"] - want
    assert np.sqrt((runtime**2).mean()) < 0.9 * np.sqrt((emulated**2).mean())


def test_the_largest_value_is_named_and_masks_are_no_overflow():
    half = np.float16
    values = {
        "layers.0.scores": np.array([-np.inf, 2.0], dtype=half),
        "layers.1.mlp": np.array([300.0, -400.0], dtype=half),
        "layers.1.norm": np.array([1e9], dtype=np.float32),
    }
    assert largest(values) == (400.0, "layers.1.mlp")
    values["layers.2.mlp"] = np.array([np.inf], dtype=half)
    assert largest(values) == (np.inf, "layers.2.mlp")
    values["layers.2.norm"] = np.array([np.nan], dtype=half)
    assert largest(values)[1] == "layers.2.mlp"
