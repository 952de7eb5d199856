"""The layout is known from the plan alone; the blocks, once traced, want just those weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.families import family_of
from mla_export.layout import Parameter, head_name, layout
from mla_export.plan import Forms, Plan
from mla_export.trace import Traced, trace
from tests.checkpoints import FAMILIES, VARIANTS, make_checkpoint
from tests.quick_trace import quick_tracing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3", num_hidden_layers=2)


def named(block: Traced, prefix: str) -> list[tuple[str, tuple[int, ...], object]]:
    return [(prefix + name, value.shape.numpy(), value.dtype) for name, value in block.parameters.items()]


def described(parameter: Parameter) -> tuple[str, tuple[int, ...], object]:
    return parameter.name, parameter.shape, parameter.dtype


@pytest.mark.parametrize("absorb", ["factored", "merged", "expanded"])
@pytest.mark.parametrize("name", [*FAMILIES, "v2_biases", "v3_no_q_lora", "v3_tied", "minicpm3_biases"])
def test_traced_blocks_have_the_parameters_of_the_layout(tmp_path, name, absorb):
    family, own = VARIANTS.get(name, (name, {}))
    config = Checkpoint.open(make_checkpoint(tmp_path / "model", family, **own)).config
    geometry = family_of(config).geometry(config)
    plan = Plan.floats(geometry, absorb, "float32" if absorb == "merged" else "float16")
    with quick_tracing():
        traced = trace(plan)
    for phase in ("step", "prompt"):
        wanted = named(traced.prelude, "")
        for i, kind in enumerate(geometry.layer_kinds):
            wanted += named(traced.layer(kind, phase), f"layers.{i}.")
        head = [(head_name(geometry, name), *rest) for name, *rest in named(traced.head, "")]
        wanted += [value for value in head if value[0] not in {name for name, *_ in wanted}]
        assert [described(parameter) for parameter in layout(plan).parameters] == wanted


@pytest.mark.parametrize(
    "forms",
    [
        ("portable", "factored", "fp16", None, None),
        ("portable", "merged", None, None, None),
        ("ort-cpu", "factored", None, "int8", 32),
        ("ort-cpu", "factored", None, "int4", 32),
        ("ort-cpu", "merged", None, "int4", 128),
    ],
    ids=str,
)
def test_the_weights_take_the_bytes_that_the_layout_says(checkpoint, tmp_path, forms):
    target, absorb, dtype, weights, group = forms
    config = Checkpoint.open(checkpoint).config
    chosen = Forms.choose(
        target, absorb, dtype, weights, group, "float", "float", head=None, calibrated=False
    )
    said = layout(chosen.plan(family_of(config).geometry(config))).nbytes
    with quick_tracing():
        out = export(
            checkpoint,
            tmp_path / "b",
            target=target,
            absorb=absorb,
            dtype=dtype,
            weights=weights,
            group=group,
        )
    assert (out / "weights.data").stat().st_size == said
