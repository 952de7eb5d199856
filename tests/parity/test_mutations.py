"""Each classic mistake, made on purpose, fails the very comparison that the untouched export passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_export import absorb, families
from mla_export.blocks.attention import Attention
from mla_export.export import export
from mla_graphs.geometry import Geometry
from mla_runtime.backends.ort_buffers import SlotBuffers
from mla_runtime.session import Session
from tests.parity.conftest import CHUNK
from tests.parity.judge import Judgement, judge_bundle
from tests.quick_trace import quick_tracing

CASE = "deepseek_v3"
# P == D, so that W_UK and W_UV swapped have each other's shapes
OVERRIDES: dict[str, Any] = {"v_head_dim": 16}
LENGTHS = (1, 7, 40)
STEPS = 6

Mutation = Callable[[pytest.MonkeyPatch], None]


def judged(witness: Any, bundle: Path) -> Judgement:
    return judge_bundle(bundle, witness(CASE, **OVERRIDES), LENGTHS, STEPS)


def with_geometry(change: Callable[[Geometry], Geometry]) -> Mutation:
    """Export as if the family had read another geometry from the same config.json."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        family = type(families.family_of({"model_type": CASE}))
        read = family.geometry
        patch.setattr(family, "geometry", lambda *given: change(read(*given)))

    return mutate


def scale_without_mscale(g: Geometry) -> Geometry:
    return dataclasses.replace(g, softmax_scale=g.qk_head_dim**-0.5)


def scale_of_the_latent(g: Geometry) -> Geometry:
    width = g.kv_lora_rank + g.qk_rope_head_dim
    return dataclasses.replace(g, softmax_scale=g.softmax_scale * (g.qk_head_dim / width) ** 0.5)


def halves_for_pairs(g: Geometry) -> Geometry:
    return dataclasses.replace(g, rotary=dataclasses.replace(g.rotary, interleaved=False))


def swap_w_uk_and_w_uv(patch: pytest.MonkeyPatch) -> None:
    split = absorb.split_kv_b
    patch.setattr(absorb, "split_kv_b", lambda *given: split(*given)[::-1])


def skip_the_latent_norm(patch: pytest.MonkeyPatch) -> None:
    build = Attention.__init__

    def without(self: Attention, *given: Any) -> None:
        build(self, *given)
        self.kv_norm = torch.nn.Identity()  # type: ignore[assignment]

    patch.setattr(Attention, "__init__", without)


@pytest.mark.parametrize("form", ["factored", "merged", "expanded"])
def test_untouched_passes(witness, bundle, form):
    assert not judged(witness, bundle(CASE, form, **OVERRIDES)).failed


EXPORT_MUTATIONS: dict[str, Mutation] = {
    "scale without mscale squared": with_geometry(scale_without_mscale),
    "scale 1/sqrt(C+R)": with_geometry(scale_of_the_latent),
    "rope halves for pairs": with_geometry(halves_for_pairs),
    "W_UK and W_UV swapped": swap_w_uk_and_w_uv,
    "latent norm skipped": skip_the_latent_norm,
}


@pytest.mark.parametrize("form", ["factored", "merged"])
@pytest.mark.parametrize("name", EXPORT_MUTATIONS)
def test_a_wrong_export_fails(witness, tmp_path, monkeypatch, name, form):
    path = witness(CASE, **OVERRIDES).path
    with monkeypatch.context() as patch, quick_tracing():
        EXPORT_MUTATIONS[name](patch)
        wrong = export(path, tmp_path / "wrong", absorb=form, chunk=CHUNK)
    found = judged(witness, wrong)
    assert {c.name: c.verdict for c in found.comparisons if c.name != "prompt"} == {
        "steps": "fail",
        "prompt in pieces": "fail",
        "token by token": "fail",
        "ragged batch": "fail",
    }
    assert max(c.would_pass for c in found.comparisons) > 100


def later_positions(patch: pytest.MonkeyPatch) -> None:
    """The step's positions are one too far; the prompt's are right."""
    call = Session._call

    def moved(self: Session, phase: Any, *given: Any) -> Any:
        made = call(self, phase, *given)
        return dataclasses.replace(made, position_ids=made.position_ids + 1) if phase == "step" else made

    patch.setattr(Session, "_call", moved)


def shifted_rows(patch: pytest.MonkeyPatch) -> None:
    """Before each call one layer's latents stand a row later than their rotary keys."""
    run = SlotBuffers.run

    def shifted(self: SlotBuffers, call: Any) -> Any:
        past = int(call.past_lengths[0])
        rows = self._rows[2]
        kept = rows.copy()
        rows[:, 1:past] = kept[:, : past - 1] if past else kept[:, :0]
        try:
            return run(self, call)
        finally:
            rows[:, :past] = kept[:, :past]

    patch.setattr(SlotBuffers, "run", shifted)


RUN_MUTATIONS: dict[str, tuple[Mutation, set[str]]] = {
    "position off by one": (later_positions, {"steps", "token by token", "ragged batch"}),
    "cache row shifted": (shifted_rows, {"steps", "prompt in pieces", "token by token"}),
}


@pytest.mark.parametrize("form", ["factored", "merged", "expanded"])
@pytest.mark.parametrize("name", RUN_MUTATIONS)
def test_a_wrong_runtime_fails(witness, bundle, monkeypatch, name, form):
    mutate, seen_in = RUN_MUTATIONS[name]
    right = bundle(CASE, form, **OVERRIDES)
    with monkeypatch.context() as patch:
        mutate(patch)
        found = judged(witness, right)
    assert seen_in <= {c.name for c in found.comparisons if c.verdict == "fail"}
    assert not judged(witness, right).failed
