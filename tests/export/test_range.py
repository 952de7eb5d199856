"""`range`: what float16 cannot hold is found and named, before a card finds it."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import mla_runtime
from mla_export.cli import main
from mla_export.commands.range import render
from mla_export.commands.tables import console
from mla_export.export import export
from mla_export.ranges import LIMIT, Ranges, Reached, look
from mla_graphs.lowering.portable import int8
from mla_runtime import Bundle
from mla_runtime.canary import check_canary
from mla_runtime.errors import CapacityError, InputError
from tests.checkpoints import FAMILIES, make_checkpoint, read_tensors, write_tensors
from tests.quick_trace import quick_tracing

TOKEN = 200  # no canary has it, so that its overflow passes an export
CHANNEL = 5
PROMPTS = [[1, 2, 3, TOKEN, 5, 6], list(range(40, 80)), [7, 8, TOKEN]]
BROKEN = "layers.1.ffn_residual"


def made(source: Path, out: Path, **forms: str) -> Bundle:
    with quick_tracing():
        return Bundle.open(export(source, out, dtype="fp16", chunk=32, **forms))


def file_of(folder: Path, prompts: list[list[int]] = PROMPTS) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(prompts))
    return path


def shown(found: Ranges) -> str:
    out = console()
    out.file = io.StringIO()
    out.print(render(found))
    return " ".join(out.file.getvalue().split())


def node(found: Ranges, name: str) -> Reached:
    (one,) = (node for node in found.nodes if node.node == name)
    return one


def with_large_residual(folder: Path, factor: float) -> Path:
    """A checkpoint in which one token is large in a channel that a layer adds to, `factor` times as much."""
    model = make_checkpoint(folder / "model", "deepseek_v3")
    tensors = read_tensors(model)
    tensors["model.embed_tokens.weight"][TOKEN, CHANNEL] = 60000
    tensors["model.layers.1.mlp.shared_experts.down_proj.weight"][CHANNEL] *= factor
    write_tensors(model, tensors)
    return model


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("overflow")
    return made(with_large_residual(folder, -3000), folder / "bundle")


def test_an_overflow_is_found_where_it_begins_while_the_cpu_says_nothing(overflowing, tmp_path):
    with mla_runtime.open(overflowing.path) as model:
        canary = check_canary(model)
        assert canary.error <= canary.tolerance
        with model.session() as session:
            assert np.isfinite(session.prefill([PROMPTS[0]])).all()
    found = look(overflowing, prompts=file_of(tmp_path), steps=4)
    assert not found.passed
    first = found.overflowing[0]
    assert (first.node, first.layer, first.op_type) == (BROKEN, 1, "Add")
    assert 65520 < first.largest < 80000
    assert (first.phase, first.prompt, first.first, first.last) in (("prompt", 2, 2, 2), ("prompt", 0, 3, 3))
    assert first.overflows == 2  # once in either prompt that has the token
    # what comes later is known from the run without rounding, and is no overflow where it is small
    assert {n.operator for n in found.overflowing} == {"ffn_residual", "attention_residual"}
    assert {n.layer for n in found.overflowing} == {1, 2}
    # a row that is lost spoils whoever attends to it or past it (0 · NaN); the other prompt is whole
    assert (found.rounding.tokens, found.rounding.finite) == (61, 40 + 4)
    text = shown(found)
    assert f"{BROKEN} (Add) is the first" in text
    assert "residual stream of layer 1" in text
    assert "export with --dtype fp32" in text


def test_what_comes_close_is_said_and_passes(tmp_path):
    source = with_large_residual(tmp_path, 1)
    found = look(made(source, tmp_path / "bundle"), prompts=file_of(tmp_path), steps=2)
    assert found.passed
    assert not found.overflowing
    assert node(found, BROKEN).fit == "close"
    assert node(found, BROKEN).share == pytest.approx(60000 / LIMIT, rel=1e-3)
    assert "less than a factor of 2 to spare" in shown(found)


@pytest.mark.parametrize(
    ("family", "cache"), [*((family, "float") for family in FAMILIES), ("deepseek_v3", "int8")]
)
def test_a_small_model_of_every_family_is_fine(family, cache, tmp_path):
    source = make_checkpoint(tmp_path / "model", family)
    found = look(made(source, tmp_path / "bundle", cache=cache), prompts=file_of(tmp_path), steps=2)
    assert found.passed
    assert {n.fit for n in found.nodes} == {"fine"}
    r = found.rounding
    assert r.tokens == r.finite == sum(map(len, PROMPTS)) + 2 * len(PROMPTS)
    assert r.same_top > 0.9  # gates that fall the other way move some
    assert r.relative > 1e-5, "nothing was rounded"
    layers = {n.layer for n in found.nodes}
    assert layers >= {0, 1, 2}
    products = [n for n in found.nodes if n.op_type in ("MatMul", "Gemm")]
    assert all(n.sums >= 0.98 * n.largest for n in products)  # in the run without rounding
    assert "Products fit in any order of their sums" in shown(found)
    assert "float16 holds it (" in shown(found)


def test_codes_need_the_factor_that_keeps_their_sums_small(tmp_path, monkeypatch):
    """Codes are up to 127: with them, queries that are large but no more than that overflow."""
    source = make_checkpoint(tmp_path / "model", "deepseek_v3")
    tensors = read_tensors(source)
    for name in tensors:
        if name.endswith("q_b_proj.weight"):
            tensors[name] *= 500
    write_tensors(source, tensors)
    prompts = file_of(tmp_path)
    right = look(made(source, tmp_path / "right", cache="int8"), prompts=prompts, steps=2)
    assert right.passed
    # an export looks at two tokens, and would find this in them
    monkeypatch.setattr(importlib.import_module("mla_export.export"), "check_range", lambda model: None)
    monkeypatch.setattr(int8, "_FP16_FACTOR", 1.0)
    wrong = look(made(source, tmp_path / "wrong", cache="int8"), prompts=prompts, steps=2)
    assert {n.operator.rpartition("_")[0].rpartition(".")[2] for n in wrong.overflowing} >= {
        "new_latent",
        "past_latent",
    }
    assert all("latent_scores" in n.operator for n in wrong.overflowing)


def test_probabilities_need_it_to_keep_their_bits(tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "model", "deepseek_v3")
    prompts = file_of(tmp_path, [list(range(100, 228))])
    shares = []
    for factor in (16.0, 1.0):
        monkeypatch.setattr(int8, "_FP16_FACTOR", factor)
        found = look(made(source, tmp_path / f"{factor}", cache="int8"), prompts=prompts, steps=2)
        part = [n.subnormal for n in found.nodes if n.operator == "attention.past_context_scaled_cast"]
        assert len(part) == 3
        shares.append(max(part))
    assert shares[1] > 1.2 * shares[0]


def test_it_is_a_command(overflowing, tmp_path, capsys):
    prompts = str(file_of(tmp_path, [[1, 2, TOKEN]]))
    code = main(["range", str(overflowing.path), "--prompts", prompts, "--steps", "1", "--json", "--quiet"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["passed"] is False
    assert found["limit"] == LIMIT
    assert found["rounding"]["finite"] == 0
    assert BROKEN in [n["node"] for n in found["nodes"] if n["fit"] == "overflow"]
    prompts = str(file_of(tmp_path, [[1, 2, 3]]))
    assert main(["range", str(overflowing.path), "--prompts", prompts, "--steps", "1", "--quiet"]) == 0
    assert "float16 holds it" in capsys.readouterr().out


def test_a_bundle_in_fp32_is_refused(tmp_path):
    source = make_checkpoint(tmp_path / "model", "youtu")
    with quick_tracing():
        bundle = Bundle.open(export(source, tmp_path / "bundle"))
    with pytest.raises(InputError, match=r"computes in float32.*--dtype fp16"):
        look(bundle)


def test_a_prompt_must_leave_room(overflowing, tmp_path):
    with pytest.raises(CapacityError, match="pass the bundle's context"):
        look(overflowing, prompts=file_of(tmp_path, [[1, 2, 3]]), steps=510)
