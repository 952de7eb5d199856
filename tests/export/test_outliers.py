"""INT8 rows where one token is far larger than all others: a scale a token bears it, one for all does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.judge import log_softmax
from mla_export.quality import Teacher, measure, text_windows
from mla_export.reference import Reference
from mla_export.tally import Figures
from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import int8
from mla_runtime import Bundle
from tests.outliers import with_outliers
from tests.parity.witness import Witness
from tests.quick_trace import quick_tracing

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "tiny-mla"
TEXT = SAMPLE / "held_out.txt"
TOKENS = 2048  # one window, which is one chunk of the prompt graph
BEGIN, GET = 0, 369  # the first token, as in most large models, and one that comes a few times later

# the gates of INT8 rows with the checkpoint's routing, which shows the rounding by itself
MOST_KL, MOST_KL_99, LEAST_SAME_TOP = 1e-4, 1.5e-4, 0.995


@pytest.fixture(scope="module", params=[(BEGIN, 4.0), (GET, 16.0)], ids=["begin", "get"])
def model(request, tmp_path_factory) -> tuple[int, Path, Teacher]:
    """The token that stands out, the checkpoint, and what it makes of the text."""
    token, factor = request.param
    source = with_outliers(SAMPLE, tmp_path_factory.mktemp("outliers") / "model", token, factor)
    bundle = rows_in_int8(source, source.parent / "windows")
    windows = text_windows(bundle, TEXT, TOKENS)
    assert token in windows[0][:-1]
    return token, source, Teacher.of(Reference(Checkpoint.open(source), bundle.model.max_context), windows)


def rows_in_int8(source: Path, out: Path) -> Bundle:
    with quick_tracing():
        return Bundle.open(export(source, out, cache="int8", chunk=TOKENS))


def pinned(source: Path, out: Path, teacher: Teacher) -> Figures:
    found = measure(rows_in_int8(source, out), teacher, threads=1).pinned
    assert found is not None
    return found[0]


def one_scale(b: Builder, call: Call) -> list[ir.Value]:
    """Quantise as `QuantizeRows` does, but all rows by the largest magnitude of any."""
    x = call.inputs[0]
    largest = b.op("ReduceMax", b.op("Abs", x, name="magnitude"), b.ints(-1), keepdims=0, name="largest")
    of_any = b.op("ReduceMax", largest, keepdims=1, name="largest_of_any")  # [1,1]
    everywhere = b.op("Max", b.op("Mul", largest, b.number(0.0, x.dtype), name="zeros"), of_any, name="all")
    scale = b.op("Div", everywhere, b.number(int8.LARGEST_CODE, x.dtype), name="scale")  # [B,S]
    ratio = b.op("Div", x, b.op("Unsqueeze", scale, b.ints(2), name="scale_column"), name="ratio")
    zero = int8.zero_point(b, call.node.outputs[0])
    return [b.op("QuantizeLinear", ratio, b.number(1.0, x.dtype), zero, name="codes"), scale]


def test_the_model_has_outliers_and_is_a_language_model(model):
    token, source, teacher = model
    ids = [5, 64, token, 13, 9, 200, *teacher.windows[0][1:60]]
    for latent in Witness(source).oracle(ids).latent:
        largest = np.abs(latent).max(axis=1)
        is_token = np.array(ids) == token
        assert largest[is_token].min() > 3 * largest[~is_token].max()
    targets = teacher.windows[0][1:]
    log_probabilities = log_softmax(teacher.passage.logits(0, range(TOKENS)))
    perplexity = np.exp(-log_probabilities[range(TOKENS), targets].mean())
    assert perplexity < 44.2  # the sample itself: 43.3


def test_a_scale_a_token_keeps_the_gates(model, tmp_path):
    _, source, teacher = model
    found = pinned(source, tmp_path / "bundle", teacher)
    assert found.kl_mean <= MOST_KL
    assert found.kl_99 <= MOST_KL_99
    assert found.same_top >= LEAST_SAME_TOP


def test_a_scale_for_all_tokens_misses_every_gate(model, tmp_path, monkeypatch):
    _, source, teacher = model
    monkeypatch.setitem(int8.RULES, "QuantizeRows", one_scale)
    found = pinned(source, tmp_path / "bundle", teacher)
    assert found.kl_mean > MOST_KL
    assert found.kl_99 > MOST_KL_99
    assert found.same_top < LEAST_SAME_TOP
