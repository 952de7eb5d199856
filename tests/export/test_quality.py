"""Quality on a text: the figures, the windows, and routing that is free or pinned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mla_runtime
from mla_export import quality
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.judge import divergence
from mla_export.probe import Probe, Reading
from mla_export.quality import Quality, Teacher, cut, measure, text_windows
from mla_export.reference import Reference
from mla_export.tally import Figures
from mla_runtime import Bundle
from mla_runtime.backends.base import Call
from mla_runtime.errors import BundleError, InputError, NumericsError
from tests.checkpoints import FAMILIES, make_checkpoint
from tests.quick_trace import quick_tracing

CHUNK = 16
DENSE = {"minicpm3", "youtu"}


def drawn(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


WINDOWS = [drawn(41), drawn(18, seed=1)]


class Made:
    """A random model, its bundle, and what it makes of the windows."""

    def __init__(self, folder: Path, family: str, **forms):
        self.source = make_checkpoint(folder / "model", family)
        with quick_tracing():
            self.bundle = Bundle.open(export(self.source, folder / "bundle", chunk=CHUNK, **forms))
        reference = Reference(Checkpoint.open(self.source), self.bundle.model.max_context)
        self.teacher = Teacher.of(reference, WINDOWS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found: dict[str, Made] = {}

    def get(family: str, **forms) -> Made:
        key = repr((family, forms))
        if key not in found:
            found[key] = Made(tmp_path_factory.mktemp("quality"), family, **forms)
        return found[key]

    return get


@pytest.mark.parametrize(
    ("family", "target"), [*((family, "portable") for family in FAMILIES), ("deepseek_v3", "ort-cpu")]
)
def test_a_bundle_in_floats_is_its_checkpoint(made, family, target):
    m = made(family, target=target)
    found = measure(m.bundle, m.teacher)
    assert (found.tokens, found.window) == (57, 40)
    assert (found.pinned is None) == (found.rerouted is None) == (family in DENSE)
    for row in (*found.free, *(found.pinned or ())):
        assert row.kl_999 < 1e-6
        assert row.same_top == 1.0
        assert row.perplexity == pytest.approx(row.reference_perplexity, rel=1e-4)
    assert not found.rerouted


def test_keys_and_values_a_head_are_kept_as_well_as_latent_rows(made):
    found = measure(*parts(made("deepseek_v2", absorb="expanded")))
    assert max(row.kl_999 for row in found.free) < 1e-6


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
def test_free_gates_give_what_the_bundle_gives(made, target):
    bundle, ids = made("deepseek_v3", target=target).bundle, np.array([WINDOWS[0]])
    reading = Reading(Probe(bundle, threads=1), 41)
    with mla_runtime.open(bundle.path, threads=1) as model:
        buffers = model.backend.buffers(1, 41)
        for start in range(0, 41, CHUNK):
            part = ids[:, start : start + CHUNK]
            new = np.arange(part.shape[1])
            call = Call("prompt", part, start + new[None], np.array([start]), np.array([len(new)]), new)
            np.testing.assert_array_equal(reading(part[0])[0], buffers.run(call))
            buffers.keep(call)


@pytest.mark.parametrize("forms", [{}, {"target": "ort-cpu", "weights": "int4"}], ids=["portable", "ort-cpu"])
def test_a_given_choice_is_taken_by_its_own_layer(made, forms):
    probe = Probe(made("deepseek_v3", **forms).bundle)
    assert probe.gates == (1, 2)
    ids = WINDOWS[0][:CHUNK]
    free, chosen = Reading(probe, 40)(ids)
    pinned, _ = Reading(probe, 40)(ids, [np.sort(gate, axis=-1) for gate in chosen])
    np.testing.assert_allclose(pinned, free, atol=1e-4)
    other = [chosen[0], (chosen[1] + 1) % 8]
    moved, seen = Reading(probe, 40)(ids, other)
    np.testing.assert_array_equal(seen[0], chosen[0])  # what the gate itself would have taken
    assert (np.abs(moved - free).max(axis=1) > 1e-2).all()


def test_pinned_routing_is_what_the_checkpoint_chose(made):
    """In 4 bits gates choose otherwise; with the checkpoint's choices the rest is closer to it."""
    found = measure(*parts(made("deepseek_v3", target="ort-cpu", weights="int4")))
    assert found.rerouted is not None
    assert found.pinned is not None
    assert 0.2 < found.rerouted <= 1
    assert found.pinned[0].kl_mean < 0.8 * found.free[0].kl_mean
    assert found.pinned[0].kl_mean > 1e-4


def parts(m: Made) -> tuple[Bundle, Teacher]:
    return m.bundle, m.teacher


def test_the_figures_are_those_of_their_definitions(made):
    m = made("deepseek_v3", target="ort-cpu", weights="int8")
    found = measure(m.bundle, m.teacher).free
    passes = m.teacher.passage.reference.forward([window[:-1] for window in WINDOWS])["float32"]
    want = np.concatenate([p.logits for p in passes])
    got = []
    for window in WINDOWS:
        reading, ids = Reading(Probe(m.bundle), 40), window[:-1]
        got += [reading(ids[i : i + CHUNK])[0] for i in range(0, len(ids), CHUNK)]
    logits, kl = np.concatenate(got), divergence(np.concatenate(got), want)
    targets = torch.tensor([token for window in WINDOWS for token in window[1:]])
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits).double(), targets)
    assert found[0].kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert found[0].kl_99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-3)
    assert found[0].kl_999 == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    assert found[0].perplexity == pytest.approx(float(loss.exp()), rel=1e-6)
    assert found[0].same_top == (logits.argmax(axis=1) == want.argmax(axis=1)).mean()
    assert [(row.first, row.last, row.tokens) for row in found] == [
        (0, 39, 57),
        (0, 15, 32),
        (16, 39, 25),
    ]
    first = np.r_[kl[:16], kl[40:56]]
    assert found[1].kl_mean == pytest.approx(first.mean(), rel=1e-3)
    assert found[2].kl_mean == pytest.approx(np.r_[kl[16:40], kl[56:]].mean(), rel=1e-3)


def test_a_large_vocabulary_is_compared_some_rows_at_a_time(made, monkeypatch):
    m = made("deepseek_v3", target="ort-cpu", weights="int8")
    whole = measure(m.bundle, m.teacher).free[0]
    most = 0
    true = m.teacher.passage.logits

    def watched(row, at):
        nonlocal most
        most = max(most, len(at))
        return true(row, at)

    monkeypatch.setattr(m.teacher.passage, "logits", watched)
    monkeypatch.setattr(quality, "_ELEMENTS", 5 * 256)
    assert measure(m.bundle, m.teacher).free[0].kl_mean == pytest.approx(whole.kl_mean, rel=1e-3)
    assert most == 5


def test_windows_foretell_every_token_once():
    ids = list(range(1, 11))
    windows = cut(ids, 4, 0, None, "t")
    assert windows == [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [0, 9, 10]]
    windows = cut(ids, 4, None, None, "t")
    assert windows == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9], [9, 10]]
    assert cut(ids, 4, 0, 6, "t") == [[0, 1, 2, 3, 4], [0, 5, 6]]
    assert cut(ids, 4, 0, 8, "t") == [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]]
    assert cut([7], 4, 0, 99, "t") == [[0, 7]]


@pytest.mark.parametrize(("ids", "bos"), [([], 0), ([7], None), ([], None)])
def test_a_text_with_nothing_to_foretell_is_refused(ids, bos):
    with pytest.raises(InputError, match=r"t: has . tokens?, and none to foretell"):
        cut(ids, 4, bos, None, "t")


def test_a_text_needs_a_tokenizer(made, tmp_path):
    (tmp_path / "text").write_text("words")
    with pytest.raises(InputError, match="no tokenizer"):
        text_windows(made("youtu", target="portable").bundle, tmp_path / "text")


def test_gates_elsewhere_than_the_checkpoints_are_refused(made):
    dense, sparse = made("youtu", target="portable"), made("deepseek_v3", target="portable")
    with pytest.raises(BundleError, match=r"gates in layers \[\], the checkpoint's are in \[1, 2\]"):
        measure(dense.bundle, sparse.teacher)


def test_logits_that_are_not_finite_are_an_error(made, monkeypatch):
    m = made("deepseek_v3", target="portable")
    true = Probe.run

    def broken(self, inputs):
        logits, *rest = true(self, inputs)
        logits[3, 5] = np.nan
        return logits, *rest

    monkeypatch.setattr(Probe, "run", broken)
    with pytest.raises(NumericsError, match="position 3 are not finite"):
        measure(m.bundle, m.teacher)


def test_no_router_logits_are_kept(made):
    routing = made("deepseek_v3", target="portable").teacher.passage.routing[0]
    assert [None if r is None else r.logits.size for r in routing] == [None, 0, 0]


def test_quality_is_made_of_plain_numbers(made):
    m = made("deepseek_v3", target="portable")
    found = measure(m.bundle, m.teacher)
    assert isinstance(found, Quality)
    assert all(isinstance(row, Figures) for row in found.free)
    assert {type(getattr(row, name)) for row in found.free for name in Figures.__slots__} == {int, float}
