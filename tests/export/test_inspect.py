"""`inspect`: on a configuration, a checkpoint and a bundle's geometry, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mla_export import costs
from mla_export.checkpoint import Checkpoint
from mla_export.cli import main
from mla_export.families import family_of
from mla_export.geometry_json import geometry_from
from mla_export.inspect import inspect
from mla_graphs import Geometry
from mla_runtime.errors import BundleError, CheckpointError, ConfigError
from tests.checkpoints import FAMILIES, VARIANTS, append_mtp, hf_config, make_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}


def geometry_of(name: str) -> tuple[Geometry, int]:
    family_name, overrides = ALL[name]
    config = json.loads(hf_config(family_name, **overrides).to_json_string(use_diff=False))
    family = family_of(config)
    geometry = family.geometry(config)
    return geometry, sum(math.prod(shape) for shape in family.tensors(geometry).values())


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_the_sum_of_the_tensors(name: str):
    geometry, total = geometry_of(name)
    assert costs.parameters(geometry).total == total


@pytest.mark.parametrize("name", ALL)
def test_geometry_survives_json(name: str):
    geometry, _ = geometry_of(name)
    assert geometry_from(json.loads(json.dumps(asdict(geometry))), "here") == geometry


def plain_geometry() -> dict[str, Any]:
    geometry, _ = geometry_of("deepseek_v3")
    plain: dict[str, Any] = json.loads(json.dumps(asdict(geometry)))
    return plain


def test_a_damaged_geometry_is_refused_by_key():
    cases = {
        "kv_lora_rank": ("many", r"here\.kv_lora_rank: 'many' is not an integer"),
        "softmax_scale": (None, r"here\.softmax_scale: None is not a finite number"),
        "layer_kinds": (["dense"], "1 layer_kinds for 3 layers"),
        "moe": (None, "layers of kind moe, but moe is null"),
    }
    for key, (value, message) in cases.items():
        with pytest.raises(BundleError, match=message):
            geometry_from({**plain_geometry(), key: value}, "here")
    with pytest.raises(BundleError, match="here: 'v_head_dim' is missing"):
        geometry_from({k: v for k, v in plain_geometry().items() if k != "v_head_dim"}, "here")
    wrong = plain_geometry()
    wrong["rotary"]["scaling"] = {"sharpness": 2.0}
    with pytest.raises(BundleError, match=r"here\.rotary\.scaling: .* is not one of the forms known here"):
        geometry_from(wrong, "here")


def test_a_checkpoint_with_what_is_ignored(tmp_path: Path):
    path = make_checkpoint(tmp_path / "model", "deepseek_v3")
    append_mtp(path)
    found = inspect(path)
    assert found.kind == "checkpoint"
    assert found.tensors is not None
    ((reason, number),) = found.tensors.ignored.items()
    assert reason.startswith("multi-token-prediction layer")
    assert found.tensors.count == found.tensors.consumed + number


def test_a_bare_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "config.json"
    file.write_text(hf_config("minicpm3").to_json_string(use_diff=False))
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "minicpm3, configuration only" in shown
    assert (
        "up to 512 tokens, rotary in halves, theta 10000, LongRoPE with the factors of this context"
        in " ".join(shown.split())
    )
    assert "  scales         embedding " in shown
    assert main(["inspect", str(tmp_path), "--max-context", "64"]) == 0
    assert "up to 64 tokens" in capsys.readouterr().out


def test_layers_that_only_draft_are_mentioned(capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(CONFIGS / "DeepSeek-V3.json")]) == 0
    assert "1 multi-token-prediction layer(s) are left out" in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.json")), ids=lambda file: file.stem)
def test_published_configurations(file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(file), "--json"]) == 0
    attention = json.loads(capsys.readouterr().out)["attention"]
    assert 1.0 < attention["merged_uk"]["ratio"] < attention["merged"]["ratio"] < 4.0


def test_json_holds_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = make_checkpoint(tmp_path / "model", "deepseek_v2")
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    geometry = geometry_from(found["geometry"], "geometry")
    assert found["parameters"]["total"] == costs.parameters(geometry).total
    latent = found["cache_bytes_per_token"]["latent"]
    assert latent == {"float32": 3 * 40 * 4, "float16": 3 * 40 * 2, "int8": 3 * (32 + 4 + 16)}
    merged = found["attention"]["merged"]
    assert merged["bytes_per_token"]["float16"] == 3 * 2 * merged["elements_per_layer"]
    assert merged["ratio"] == pytest.approx(
        merged["elements_per_layer"] / found["attention"]["factored"]["elements_per_layer"]
    )
    assert found["tensors"]["dtypes"] == {"F32": found["tensors"]["count"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"model_type": "kimi_linear"}', "linear attention"),
        ('{"model_type": "llama"}', "Supported are deepseek_v2"),
        ('{"peft_type": "LORA"}', "PEFT adapter"),
        ("[1]", "holds a list where an object belongs"),
    ],
)
def test_what_is_not_supported_is_said(
    content: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.json").write_text(content)
    assert main(["inspect", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert reason in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_folder_is_named_as_such(weights: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / weights).touch()
    with pytest.raises(ConfigError, match=r"has an adapter_config\.json: this is a PEFT adapter; merge it"):
        inspect(tmp_path)


@pytest.mark.parametrize("look", [inspect, Checkpoint.open], ids=["inspect", "open"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is a file of weights; name its folder, which holds config.json too"),
        ("model-Q8_0.gguf", "name the folder of the safetensors checkpoint that it was made from"),
    ],
)
def test_a_file_of_weights_is_told_what_to_name(
    name: str, message: str, look: Callable[[Path], object], tmp_path: Path
):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as refused:
        look(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: is a ")
    assert str(refused.value).endswith(message)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="not found; give a checkpoint folder"):
        inspect(tmp_path / "nowhere")


def test_a_configuration_larger_than_its_cap(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_bytes(b"[" + b" " * 16_000_000 + b"]")
    with pytest.raises(ConfigError, match="larger than the 16000000 bytes"):
        inspect(file)


def test_a_link_out_of_a_folder_is_not_followed(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").symlink_to(CONFIGS / "MiniCPM3-4B.json")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        inspect(tmp_path / "model")
