"""`verify`: what passes, what does not, and what it says."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import mla_export
import mla_runtime
from mla_export.checkpoint import TEXT_FILES, Checkpoint
from mla_export.commands.tables import console
from mla_export.commands.verify import render
from mla_export.export import export
from mla_export.judge import Budget, Comparison, Errors, Greedy
from mla_export.numerics import MAX_PEER_ERROR, Ground, hold
from mla_export.prompts import default_prompts
from mla_export.verification import Verification
from mla_runtime.errors import BundleError, CapacityError, InputError
from mla_runtime.manifest import Precision as Formats
from mla_runtime.manifest import digest
from tests.checkpoints import edit_config, make_checkpoint
from tests.quick_trace import quick_tracing

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("verify") / "model", "deepseek_v3")


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint) -> Path:
    with quick_tracing():
        return export(checkpoint, tmp_path_factory.mktemp("verify") / "bundle", chunk=8)


@pytest.fixture
def bundle(tmp_path, made) -> Path:
    return shutil.copytree(made, tmp_path / "bundle")


def verdicts(report: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def shown(report: Verification) -> str:
    out = console()
    out.file = io.StringIO()
    out.print(render(report))
    return out.file.getvalue()


def change_manifest(bundle: Path, change) -> None:
    file = bundle / "bundle.json"
    raw = json.loads(file.read_text())
    change(raw)
    raw["sha256"] = digest(raw)
    file.write_text(json.dumps(raw))


def test_a_good_bundle_passes(checkpoint, bundle):
    report = mla_export.verify(bundle, checkpoint, prompts=PROMPTS, steps=6)
    assert report.passed
    assert verdicts(report) == {
        "hashes of the bundle": "pass",
        "made from this checkpoint": "pass",
        "canary": "pass",
        "the reference's own error": "pass",
        "Hugging Face's whole class": "pass",
    }
    assert [c.name for c in report.comparisons] == [
        "prompt",
        "steps",
        "prompt in pieces",
        "token by token",
        "ragged batch",
    ]
    assert [c.errors.rows for c in report.comparisons[:2]] == [2, 12]
    assert [(g.agreed, g.steps) for g in report.greedy] == [(7, 7), (7, 7)]
    assert report.budget is not None
    assert 0 < report.budget.max_abs < 1e-2


def test_without_a_checkpoint_hashes_and_canary_are_checked(bundle):
    report = mla_export.verify(bundle)
    assert verdicts(report) == {"hashes of the bundle": "pass", "canary": "pass"}
    assert report.passed
    assert report.budget is None
    assert "passed" in shown(report)


def test_a_report_is_json_and_a_table(checkpoint, bundle):
    report = mla_export.verify(bundle, checkpoint, prompts=PROMPTS, steps=2)
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert read["passed"] is True
    assert read["comparisons"][0]["errors"]["rank"] == 1
    assert read["greedy"][0]["first_difference"] is None
    text = shown(report)
    assert "ragged batch" in text
    assert "which is 4 × the error of Hugging Face's layers in float32" in " ".join(text.split())


def test_a_flipped_byte_fails_and_nothing_is_run(bundle, monkeypatch):
    file = bundle / "weights.data"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(mla_runtime.Model, "session", None)
    report = mla_export.verify(bundle)
    assert not report.passed
    assert verdicts(report) == {"hashes of the bundle": "fail"}
    assert "weights.data" in report.checks[0].found
    assert "FAILED" in shown(report)


def test_another_checkpoint_fails_and_is_not_compared(tmp_path, bundle):
    other = make_checkpoint(tmp_path / "other", "deepseek_v3", seed=1)
    report = mla_export.verify(bundle, other, prompts=PROMPTS, steps=2)
    assert not report.passed
    assert verdicts(report)["made from this checkpoint"] == "fail"
    assert "model.safetensors" in report.checks[1].found
    assert report.comparisons == ()


@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_text_file_of_the_checkpoint_is_part_of_what_was_exported(tmp_path, checkpoint, bundle, name):
    changed = shutil.copytree(checkpoint, tmp_path / "changed")
    (changed / name).write_text('{"version": "9"}')
    report = mla_export.verify(bundle, changed, prompts=PROMPTS, steps=2)
    assert verdicts(report)["made from this checkpoint"] == "fail"
    assert f": {name}; nothing was compared" in report.checks[1].found


def test_weights_of_another_training_fail_the_numbers(tmp_path, bundle):
    """The manifest lies about its source: only the numbers can tell."""
    other = make_checkpoint(tmp_path / "other", "deepseek_v3", seed=1)
    change_manifest(bundle, lambda raw: raw.update(source=Checkpoint.open(other).hashes()))
    report = mla_export.verify(bundle, other, prompts=PROMPTS, steps=2)
    assert verdicts(report)["made from this checkpoint"] == "pass"
    assert {c.verdict for c in report.comparisons} == {"fail"}
    assert {g.verdict for g in report.greedy} == {"fail"}
    assert not report.passed


def test_a_lying_canary_fails(bundle):
    def lie(raw):
        raw["canary"]["top"][2][0][1] += 1.0

    change_manifest(bundle, lie)
    report = mla_export.verify(bundle)
    assert verdicts(report)["canary"] == "fail"
    assert not report.passed


def test_a_bundle_without_a_canary_fails(bundle):
    change_manifest(bundle, lambda raw: raw.update(canary=None))
    report = mla_export.verify(bundle)
    assert verdicts(report)["canary"] == "fail"
    assert not report.passed


def test_a_name_is_shown_as_it_is_and_not_as_markup(bundle):
    report = mla_export.verify(bundle)
    for name in ("c[red]d", "x[/y]", "[bold]"):
        text = shown(dataclasses.replace(report, bundle=name))
        assert f"{name} on ort:cpu" in text
        assert f"{name}: passed" in text


def test_every_byte_is_hashed_once(bundle, monkeypatch):
    true, seen = Path.open, []

    def counting(self, *given, **named):
        seen.append(self.name)
        return true(self, *given, **named)

    monkeypatch.setattr(Path, "open", counting)
    assert mla_export.verify(bundle).passed
    assert seen.count("weights.data") == 1


def test_a_model_whose_peer_is_exact_is_judged(checkpoint, bundle, monkeypatch):
    true = Ground.of

    def exact(*given):
        ground = true(*given)
        return dataclasses.replace(ground, peer=[wide.copy() for wide in ground.yardstick])

    monkeypatch.setattr(Ground, "of", exact)
    report = mla_export.verify(bundle, checkpoint, prompts=PROMPTS, steps=2)
    assert not report.passed
    assert {c.would_pass for c in report.comparisons} == {np.inf}
    json.dumps(report.to_json(), allow_nan=False)


def test_what_was_excused_is_counted_in_words(bundle):
    errors = Errors(9, 1.0, 1.0, 1.0, 0.0, 1)
    report = dataclasses.replace(
        mla_export.verify(bundle),
        budget=Budget(4.0, 1.0, 1.0, True, "p"),
        comparisons=(Comparison("steps", errors, 1.0, 3, "ambiguous"),),
        greedy=(Greedy("1: 7 tokens", 65, 63, 4, 0.2, 0.1, 2, "ambiguous"),),
    )
    text = shown(report)
    assert "behind a near tie of the router: 3 of 9 rows of 'steps'" in text
    assert "behind a near tie of the router: 2 of 65 greedy tokens of prompt 1: 7 tokens" in text


def test_what_is_no_bundle_is_an_error(tmp_path, checkpoint):
    with pytest.raises(BundleError):
        mla_export.verify(checkpoint)
    with pytest.raises(BundleError):
        mla_export.verify(tmp_path / "nothing")


def test_prompts_must_fit(checkpoint, bundle):
    with pytest.raises(CapacityError, match=r"500 tokens and 64 steps pass the bundle's context of 512"):
        mla_export.verify(bundle, checkpoint, prompts=[[1] * 500])
    with pytest.raises(InputError, match="at least one row"):
        mla_export.verify(bundle, checkpoint, prompts=[])


def test_a_broken_reference_makes_no_wide_budget(checkpoint, bundle, monkeypatch):
    """A peer that is far off would let anything pass."""
    true = Ground.of

    def broken(*given):
        ground = true(*given)
        for logits in ground.peer:
            logits += np.random.default_rng(0).normal(size=logits.shape)
        return ground

    monkeypatch.setattr(Ground, "of", broken)
    report = mla_export.verify(bundle, checkpoint, prompts=PROMPTS, steps=2)
    assert verdicts(report)["the reference's own error"] == "fail"
    assert not report.passed
    assert MAX_PEER_ERROR["float32"] < 1e-2


def test_fp16_is_judged_by_the_rms_of_the_plain_model_in_fp16(tmp_path, checkpoint):
    with quick_tracing():
        half = export(checkpoint, tmp_path / "half", dtype="fp16", chunk=8)
    report = mla_export.verify(half, checkpoint, prompts=PROMPTS, steps=6)
    assert report.passed
    assert report.precision == "float16"
    assert report.budget is not None
    assert (report.budget.factor, report.budget.judges) == (2.0, "rms")
    assert "float16" in report.budget.peer
    assert verdicts(report)["Hugging Face's whole class"] == "skipped"


def test_a_precision_without_a_peer_is_refused(made):
    formats = Formats("int3", "float32", "float32", None, None, "float32", "float32", "float32")
    with pytest.raises(BundleError, match="compute precision 'int3' has no peer"):
        hold(None, None, formats)  # type: ignore[arg-type]


def test_a_config_of_another_name_is_held_against_the_layers_alone(tmp_path, checkpoint):
    """`kimi_k2` is no class of transformers: its layers are those of deepseek_v3."""
    kimi = shutil.copytree(checkpoint, tmp_path / "kimi")
    edit_config(kimi, lambda config: config.update(model_type="kimi_k2"))
    with quick_tracing():
        bundle = export(kimi, tmp_path / "b", chunk=8)
    report = mla_export.verify(bundle, kimi, prompts=PROMPTS, steps=2)
    assert report.passed
    assert verdicts(report)["Hugging Face's whole class"] == "skipped"


def test_default_prompts_pass_the_chunk_and_leave_room(made):
    with mla_runtime.open(made) as model:
        rows = default_prompts(model, steps=64)
        assert max(map(len, rows)) > model.bundle.chunk
        assert len(rows[0]) == 1
        assert {len(row) for row in default_prompts(model, steps=508)} == {1, 4}
        assert all(0 <= token < model.bundle.model.vocab_size for row in rows for token in row)
