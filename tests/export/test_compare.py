"""`mla-export compare`: sides against one reference, and what each way of being wrong looks like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mla_export import cli
from mla_export.compare import runs
from mla_export.compare.agreement import compare
from mla_export.compare.result import Agreement, Side
from mla_export.export import export
from mla_runtime.errors import BackendError, BundleError, InputError, NumericsError
from tests.checkpoints import make_checkpoint
from tests.export.broken_lowering import (
    broken,
    scaled,
    swapped_halves,
    with_number,
    with_swapped_inputs,
    without_input,
)
from tests.quick_trace import quick_tracing

STEPS = 8
FORMS = {
    "f32": {},
    "int8": {"cache": "int8"},
    "cpu": {"target": "ort-cpu", "weights": "int8", "cache": "int8"},
    "expanded": {"absorb": "expanded"},
    "merged": {"absorb": "merged"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3")


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """Give the bundle of a form, made once."""
    folder = tmp_path_factory.mktemp("bundles")
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            with quick_tracing():
                known[name] = export(checkpoint, folder / name, chunk=32, **FORMS[name])
        return known[name]

    return get


def against(checkpoint: Path | None, *bundles: Path, **more) -> Agreement:
    with quick_tracing():
        return compare(bundles, checkpoint=checkpoint, **{"steps": STEPS, **more})


def side(found: Agreement, name: str) -> Side:
    return next(one for one in found.sides if one.name.startswith(name))


def test_right_bundles_of_every_form_agree_with_the_checkpoint(made, checkpoint):
    found = against(checkpoint, *map(made, FORMS))
    assert found.passed
    assert [one.name.split(" ")[0] for one in found.sides] == ["checkpoint", *FORMS]
    for one in found.sides:
        assert one.verdict in ("pass", "ambiguous"), one
        assert one.parted is None
        assert len(one.steps) == 1 + STEPS
        assert len(one.kl) == len(found.prompts) * (1 + STEPS)
        # the peer's own error would allow the peer everything
        assert one.gate.kind == ("fixed" if one.bundle is None else "computed")
        assert one.logits.errors.rms == pytest.approx(
            np.sqrt(np.mean([step.rms**2 for step in one.steps])), rel=1e-6
        )
        assert min(one.kl) >= -1e-12
    assert side(found, "f32").logits.errors.rms < 1e-4 < side(found, "cpu").logits.errors.rms
    kinds = {(error.rows, error.phase) for error in side(found, "int8").layers}
    assert kinds == {(rows, phase) for rows in ("latent", "rope", "block") for phase in ("prompt", "step")}
    # keys and values a head are no latent rows
    assert {error.rows for error in side(found, "expanded").layers} == {"block"}


def test_an_fp32_bundle_is_the_reference_where_there_is_no_checkpoint(made):
    found = against(None, made("int8"), made("f32"), made("merged"))
    assert found.passed
    assert found.reference == "f32 on ort:cpu"
    assert [one.verdict for one in found.sides][1] == "reference"
    assert side(found, "merged").gate.kind == "fixed"
    assert side(found, "merged").logits.errors.max_abs > 0.0
    assert {error.allowed for error in side(found, "merged").layers} == {1e-4}


def test_without_a_reference_nothing_is_compared(made):
    with pytest.raises(InputError, match=r"none of these bundles is in fp32.*--checkpoint"):
        against(None, made("int8"))


BREAKS = {
    "layers.1.attention": with_number("scale", lambda scale: 1.05 * scale),
    "layers.2.attention.k_rope": swapped_halves(),
    "layers.1.attention.q_rope": with_swapped_inputs(1, 2),
    "layers.1.attention.kv_norm": with_number("epsilon", lambda _: 0.1),
    "layers.1.moe.router": without_input(2),
    "layers.1.moe.shared.swiglu": swapped_halves(),
    "layers.2.moe.experts": scaled(1.01),
    "layers.0.attention_residual": with_number("scale", lambda scale: 0.9 * scale),
    "layers.0.attention.o_proj": scaled(0.99),
    "layers.2.attention.absorb_k": scaled(1.01),  # in the step graph alone
}


def test_a_reference_alone_is_no_comparison(made):
    with pytest.raises(InputError, match=r"f32 on ort:cpu is all there is.*--checkpoint"):
        against(None, made("f32"))
    with pytest.raises(BackendError, match=r"no side could be run.*tensorrt-rtx"):
        against(None, made("f32"), backends=["tensorrt-rtx", "ort:cpu"])


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_operator_is_named_with_its_layer(name, checkpoint, tmp_path):
    with quick_tracing(), broken("portable", name, BREAKS[name]):
        bundle = export(checkpoint, tmp_path / "wrong", chunk=32)
    found = against(checkpoint, bundle, bisect=True, backends=["ort:cpu"])
    (one,) = found.sides
    assert not found.passed
    assert one.parted.layer == int(name.split(".")[1])
    assert one.bisection.first == name
    assert [error.name for error in one.bisection.operators if error.parted] == [name]


@pytest.mark.parametrize("form", ["int8", "cpu"])
@pytest.mark.parametrize("name", ["layers.2.attention.k_rope", "layers.1.attention.q_rope"])
def test_a_broken_operator_is_named_behind_rounding_too(name, form, checkpoint, tmp_path):
    target = FORMS[form].get("target", "portable")
    with quick_tracing(), broken(target, name, BREAKS[name]):
        bundle = export(checkpoint, tmp_path / "wrong", chunk=32, **FORMS[form])
    found = against(checkpoint, bundle, bisect=True, backends=["ort:cpu"])
    assert found.sides[0].verdict == "fail"
    assert found.sides[0].bisection.first == name


def test_what_all_layers_share_is_judged_with_the_first(checkpoint, tmp_path):
    with quick_tracing(), broken("portable", "rotary_rows", with_swapped_inputs(1, 2)):
        bundle = export(checkpoint, tmp_path / "wrong", chunk=32)
    (one,) = against(checkpoint, bundle, bisect=True, backends=["ort:cpu"]).sides
    assert (one.parted.layer, one.parted.rows) == (0, "rope")
    assert one.bisection.first == "rotary_rows"


def test_where_no_layer_parts_the_head_is_looked_into(checkpoint, tmp_path):
    with quick_tracing(), broken("portable", "head.norm", scaled(1.02)):
        bundle = export(checkpoint, tmp_path / "wrong", chunk=32)
    (one,) = against(checkpoint, bundle, bisect=True, backends=["ort:cpu"]).sides
    assert one.verdict == "fail"
    assert one.parted is None
    assert (one.bisection.layer, one.bisection.first) == (None, "head.norm")


def test_a_broken_bundle_fails_against_a_bundle_too(made, checkpoint, tmp_path):
    with quick_tracing(), broken("portable", "layers.1.attention.q_rope", with_swapped_inputs(1, 2)):
        bundle = export(checkpoint, tmp_path / "wrong", chunk=32)
    found = against(None, made("f32"), bundle)
    assert not found.passed
    assert (side(found, "wrong").parted.layer, side(found, "wrong").parted.rows) == (1, "block")


def test_right_operators_are_within_what_is_allowed(made, checkpoint, monkeypatch):
    """Every operator of every layer, in every form: what a bisection would show of a right bundle."""
    from mla_export.checkpoint import Checkpoint
    from mla_export.compare.bisect import bisect
    from mla_export.compare.held import Rowed
    from mla_export.reference import Reference
    from mla_runtime.bundle import Bundle

    row = np.random.default_rng(3).integers(0, 100, 41).tolist()
    rowed = Rowed([row[:40]], [row[40:]], [row], [[0]])
    reference = Reference(Checkpoint.open(checkpoint), None)
    for name in ("f32", "int8", "cpu", "merged", "expanded"):
        bundle = Bundle.open(made(name))
        bundle.ensure_hashed()
        for layer in (0, 1, None):
            for phase, position in (("prompt", 38), ("step", 40)):
                with quick_tracing():
                    found = bisect(bundle, reference, rowed, layer, phase, 0, position)
                assert found.phase == phase
                assert found.first is None, (name, found)
                seen = [one for one in found.operators if one.relative is not None]
                assert len(seen) >= 0.9 * len(found.operators)


def test_a_backend_that_is_not_there_says_why_and_fails_nothing(made, checkpoint):
    found = against(checkpoint, made("f32"), backends=["tensorrt-rtx", "ort:cpu"])
    absent, ran = found.sides
    assert found.passed
    assert (absent.verdict, ran.verdict) == ("absent", "pass")
    assert "tensorrt-rtx" in absent.reason
    assert side(
        against(None, made("f32"), made("merged"), backends=["torch", "ort:cpu"]), "checkpoint"
    ).reason


def test_where_no_side_runs_that_is_an_error(made, checkpoint):
    with pytest.raises(BackendError, match=r"no side could be run.*tensorrt"):
        against(checkpoint, made("f32"), backends=["tensorrt"])


def test_a_side_that_stops_halfway_fails_with_its_reason(made, checkpoint, monkeypatch):
    real = runs.decode

    def decode(model, *rest):
        if model.bundle.path.name == "merged":
            raise NumericsError("logits at step 3 are not finite")
        return real(model, *rest)

    monkeypatch.setattr(runs, "decode", decode)
    found = against(checkpoint, made("f32"), made("merged"))
    assert not found.passed
    assert side(found, "merged").reason == "logits at step 3 are not finite"
    assert side(found, "f32").verdict == "pass"


def test_bundles_and_checkpoint_must_be_of_one_source(made, checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", "deepseek_v3", seed=1)
    with quick_tracing():
        bundle = export(other, tmp_path / "b", chunk=32)
    with pytest.raises(InputError, match=r"made from different checkpoints.*model.safetensors"):
        against(None, made("f32"), bundle)
    with pytest.raises(InputError, match=r"is not what .* was made from"):
        against(other, made("f32"))
    with quick_tracing():
        shorter = export(checkpoint, tmp_path / "shorter", max_context=64)
    with pytest.raises(InputError, match=r"has a context of .* one --max-context"):
        against(None, made("f32"), shorter)
    with pytest.raises(InputError, match="given twice"):
        against(None, made("f32"), made("f32"))
    with pytest.raises(BundleError):
        against(None, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"backends": ["ort:cpuu"]}, "no backend 'ort:cpuu'; known are torch, ort:cpu"),
        ({"backends": []}, "no backends"),
        ({"steps": 0}, "steps is 0"),
        ({"bisect": True}, "give it .--checkpoint"),
        ({"prompts": "x", "text": "y"}, "give one of them"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(made, more, words):
    with pytest.raises(InputError, match=words):
        against(None, made("f32"), made("merged"), **more)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "has no prompts"),
        ("[[]]", "prompt 1 is empty"),
        ('[[1, "a"]]', "prompt 1 is neither"),
        ("[[1, true]]", "prompt 1 is neither"),
        ("{", "is not JSON"),
        ("[[1, 100000]]", "outside the vocabulary"),
        ('["words"]', "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_decoded(made, checkpoint, tmp_path, content, words):
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        against(checkpoint, made("f32"), prompts=file)


def test_prompts_of_ids_are_decoded_as_they_are(made, checkpoint, tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([[1, 2, 3], [4] * 20]))
    found = against(checkpoint, made("f32"), prompts=file)
    assert found.prompts == (3, 20)
    assert found.passed


def test_a_text_forces_its_own_tokens(tmp_path):
    root = Path(__file__).resolve().parents[2]
    sample = root / "samples" / "tiny-mla"
    with quick_tracing():
        bundle = export(sample, tmp_path / "b", max_context=256)
    text = tmp_path / "text.txt"
    text.write_text((sample / "held_out.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
    found = against(sample, bundle, text=text, steps=4, backends=["ort:cpu"])
    assert found.prompts == (64,) * 8
    assert "8 pieces" in found.forced
    text.write_text("too short")
    with pytest.raises(InputError, match="a piece takes 68"):
        against(sample, bundle, text=text, steps=4)


def test_json_is_for_programs_and_the_exit_code_tells(made, checkpoint, tmp_path, capsys):
    arguments = ["compare", str(made("f32")), str(made("int8")), "--checkpoint", str(checkpoint)]
    with quick_tracing():
        assert cli.main([*arguments, "--steps", "4", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert (found["kind"], found["format"], found["passed"]) == ("compare", 1, True)
    assert [one["name"] for one in found["sides"]] == [
        "checkpoint on torch",
        "f32 on ort:cpu",
        "int8 on ort:cpu",
    ]
    with quick_tracing(), broken("portable", "layers.1.attention.q_rope", with_swapped_inputs(1, 2)):
        wrong = export(checkpoint, tmp_path / "wrong", chunk=32)
    with quick_tracing():
        code = cli.main(
            ["compare", str(wrong), "--checkpoint", str(checkpoint), "--steps", "4", "--bisect", "--quiet"]
        )
    out = capsys.readouterr().out
    assert code == 1
    assert "the first operator that parts is layers.1.attention.q_rope" in out
    assert "parts first at layer 1, block output, prompt" in out
    assert "FAILED" in out
