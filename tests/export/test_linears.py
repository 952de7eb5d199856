"""Hugging Face's linear layers by the graph's names: the same inputs in the same order."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_export.linears import fed_as, parameter_of
from mla_export.params import Recipes
from tests.checkpoints import VARIANTS, make_checkpoint

CASES = ["deepseek_v2", "deepseek_v3", "minicpm3", "youtu", "glm4_moe_lite", "v3_no_q_lora"]


def in_order(rows: torch.Tensor) -> np.ndarray:
    found = rows.double().numpy()
    return found[np.lexsort(found.T)]


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_has_the_rows_of_its_linear_layers(name, tmp_path):
    """Outputs may lie in another order than in the checkpoint, inputs may not."""
    family_name, own = VARIANTS.get(name, (name, {}))
    source = Checkpoint.open(make_checkpoint(tmp_path / "model", family_name, **own))
    family = family_of(source.config)
    geometry = family.geometry(source.config)
    names = account(source, family, geometry).names
    recipes = Recipes(geometry, "factored", torch.float32, lambda logical: source.read(names[logical]))
    wanted: dict[tuple[str, int | None], list[torch.Tensor]] = {}
    for logical, actual in names.items():
        found = re.fullmatch(r"(model\.layers\.\d+)\.(.+)\.weight", logical)
        parameter = parameter_of(found[2]) if found else None
        if found and parameter:
            expert = re.search(r"\.experts\.(\d+)\.", logical)
            place = f"{found[1].removeprefix('model.')}.{parameter}", int(expert[1]) if expert else None
            wanted.setdefault(place, []).append(source.read(actual))
    for (parameter, expert), parts in wanted.items():
        pieces = list(recipes(parameter))
        matrix = pieces[0].T if expert is None else pieces[expert][0].T
        np.testing.assert_array_equal(in_order(matrix), in_order(torch.cat(parts)), err_msg=parameter)
    assert len(wanted) >= 5 * geometry.num_hidden_layers
    merged = {fed_as("attention.o_proj.weight", geometry, form) for form in ("factored", "merged")}
    assert merged == {"self_attn.o_proj", None}
