"""One broken model folder a rule: files, links, index, shards, tensors, values; each with its exact error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_runtime.errors import CheckpointError, ConfigError, MlaError
from tests.checkpoints import append_mtp, edit_config, make_checkpoint, read_tensors, to_fp8, write_tensors

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "youtu")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "youtu", shards=2)


def refusal(path: Path, error: type[MlaError] = CheckpointError) -> str:
    """Give the error of opening and accounting for the folder."""
    with pytest.raises(error) as caught:
        open_and_account(path)
    return str(caught.value)


def open_and_account(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    family = family_of(checkpoint.config)
    account(checkpoint, family, family.geometry(checkpoint.config))


def edit_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def test_what_is_not_a_model_folder_is_refused(path: Path) -> None:
    file = path / "config.json"
    assert refusal(file) == f"{file}: is not a folder; name the one with config.json and safetensors"
    file.unlink()
    assert refusal(path, ConfigError) == (
        f"{path}: has no config.json; name the folder of a Hugging Face checkpoint"
    )


def test_an_adapter_folder_is_refused(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}")
    assert refusal(path, ConfigError) == (
        f"{path}: has an adapter_config.json: this is a PEFT adapter; merge it into its base model "
        "(merge_and_unload) and export the merged checkpoint"
    )


def test_a_config_that_is_not_a_json_object_is_refused(path: Path) -> None:
    file = path / "config.json"
    file.write_text("{")
    assert refusal(path).startswith(f"{file}: not valid JSON (Expecting property name")
    file.write_text("[]")
    assert refusal(path) == f"{file}: holds a list where an object belongs; get the file again"
    file.write_text('{"model_type": "youtu", "model_type": "llama"}')
    assert refusal(path) == (
        f"{file}: not valid JSON (the key 'model_type' is given twice); get the file again"
    )


def test_json_above_its_limit_is_refused_unparsed(path: Path) -> None:
    file = path / "config.json"
    file.write_bytes(b" " * 16_000_001)
    assert refusal(path) == (
        f"{file}: larger than the 16000000 bytes that it may have; it is not what its name says"
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_unopened(name: str, path: Path) -> None:
    (path / "model.safetensors").rename(path / name)
    assert refusal(path) == (
        f"{path}: has weights only as {name}, a pickle, which can run code and is never opened; convert "
        "it to safetensors with transformers (save_pretrained), in a place made for that"
    )


def test_other_folders_without_weights_say_what_to_do(path: Path) -> None:
    weights = path / "model.safetensors"
    other = weights.rename(path / "model-00001-of-00001.safetensors")
    assert refusal(path) == (
        f"{path}: has safetensors files, but neither model.safetensors nor {INDEX}; download the index too"
    )
    gguf = other.rename(path / "model.gguf")
    assert refusal(path) == (
        f"{path}: has weights only as model.gguf; export the safetensors checkpoint that it was made from"
    )
    gguf.unlink()
    assert refusal(path) == f"{path}: has no model.safetensors and no {INDEX}; download the weights"


def test_a_single_file_beside_an_index_is_refused(sharded: Path) -> None:
    (sharded / FIRST).rename(sharded / "model.safetensors")
    assert refusal(sharded) == (
        f"{sharded}: has both model.safetensors and {INDEX}; remove the one that is not the model"
    )


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/x", "..", "", "a\\b", "C:x", "a\0b"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(name: str, sharded: Path) -> None:
    edit_index(sharded, lambda weights: weights.update({NORM: name}))
    assert refusal(sharded) == (
        f"{sharded / INDEX}: weight_map: {name!r} is not the plain name of a file in {sharded}; do not use "
        "this folder, get it again"
    )


def test_a_link_out_of_the_folder_is_refused(path: Path, tmp_path: Path) -> None:
    outside = (path / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (path / "model.safetensors").symlink_to(outside)
    assert refusal(path) == (
        f"{path}: 'model.safetensors' is a link that leads out of its folder, to {outside.resolve()}; copy "
        "the file into the folder"
    )


def test_a_linked_config_is_guarded_too(path: Path, tmp_path: Path) -> None:
    outside = (path / "config.json").rename(tmp_path / "config.json")
    (path / "config.json").symlink_to(outside)
    assert "is a link that leads out of its folder" in refusal(path)


def test_only_blobs_beside_snapshots_may_be_linked_to(path: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.parent.mkdir()
    path.rename(snapshot)
    weights = snapshot / "model.safetensors"
    blob = weights.rename(blobs / "abc")
    weights.symlink_to(blob)
    Checkpoint.open(snapshot)
    weights.unlink()
    (blobs / "deeper").mkdir()
    weights.symlink_to(blob.rename(blobs / "deeper" / "abc"))
    assert "is a link that leads out of its folder" in refusal(snapshot)


def test_blobs_are_no_way_out_of_a_folder_that_is_no_snapshot(path: Path, tmp_path: Path) -> None:
    blobs, copies = tmp_path / "blobs", tmp_path / "copies"
    blobs.mkdir()
    copies.mkdir()
    folder = path.rename(copies / "1")
    weights = folder / "model.safetensors"
    weights.symlink_to(weights.rename(blobs / "abc"))
    assert "is a link that leads out of its folder" in refusal(folder)


def test_a_dangling_link_a_loop_and_a_folder_are_refused(sharded: Path) -> None:
    shard = sharded / FIRST
    missing = f"{sharded / INDEX}: weight_map: {FIRST!r} is missing or cannot be read ("
    shard.unlink()
    assert refusal(sharded).startswith(missing)
    shard.symlink_to("nowhere")
    assert refusal(sharded).startswith(missing)
    shard.unlink()
    shard.symlink_to(shard.name)
    assert refusal(sharded).startswith(missing)
    shard.unlink()
    shard.mkdir()
    assert refusal(sharded) == (
        f"{sharded / INDEX}: weight_map: {FIRST!r} is not a regular file; get it again"
    )


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}], ids=str)
def test_an_index_without_a_weight_map_is_refused(weight_map: object, sharded: Path) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(sharded) == f"{sharded / INDEX}: weight_map must map tensor names to file names"


def test_index_and_shards_must_agree(sharded: Path) -> None:
    names = json.loads((sharded / INDEX).read_text())["weight_map"]
    home = names[NORM]
    other = SECOND if home == FIRST else FIRST
    edit_index(sharded, lambda weights: weights.pop(NORM))
    assert refusal(sharded) == f"{sharded / home}: has tensor {NORM!r}, which is not in {INDEX}"
    edit_index(sharded, lambda weights: weights.update({NORM: other}))
    assert refusal(sharded) == f"{sharded / home}: has tensor {NORM!r}, which {INDEX} puts into {other}"
    edit_index(sharded, lambda weights: weights.update({NORM: home, "more.weight": home}))
    assert refusal(sharded) == f"{sharded / home}: lacks tensor 'more.weight', which {INDEX} puts there"


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    weights = json.loads((sharded / INDEX).read_text())["weight_map"]
    name = next(name for name, file in weights.items() if file == FIRST)
    tensors = read_tensors(sharded)
    again = {key: tensors[key] for key, file in weights.items() if file == SECOND} | {name: tensors[name]}
    save_file(again, sharded / SECOND)
    assert refusal(sharded) == f"{sharded / SECOND}: has tensor {name!r}, which {FIRST} has too"


def test_a_short_and_a_long_shard_are_refused(sharded: Path) -> None:
    shard = sharded / SECOND
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert refusal(sharded) == (
        f"{shard}: its tensors end at byte {len(content)}, but the file at {len(content) - 1}; it was cut "
        "short: download it again"
    )
    shard.write_bytes(content + b"\0\0")
    assert refusal(sharded) == f"{shard}: 2 bytes after the last tensor belong to no tensor"


def test_missing_tensors_are_named(path: Path) -> None:
    tensors = read_tensors(path)
    for layer in range(3):
        for name in ("q_a_proj.weight", "o_proj.weight"):
            del tensors[f"model.layers.{layer}.self_attn.{name}"]
    write_tensors(path, tensors)
    assert refusal(path) == (
        f"{path}: lacks 6 tensor(s) the model's config.json asks for; download it again: "
        "model.layers.0.self_attn.q_a_proj.weight; model.layers.0.self_attn.o_proj.weight; "
        "model.layers.1.self_attn.q_a_proj.weight; model.layers.1.self_attn.o_proj.weight; "
        "model.layers.2.self_attn.q_a_proj.weight and 1 more"
    )


def test_unexpected_tensors_are_named(path: Path) -> None:
    write_tensors(path, {**read_tensors(path), "model.layers.0.self_attn.q_norm.weight": torch.ones(3)})
    assert refusal(path) == (
        f"{path}: has 1 tensor(s) that no youtu model with this config.json has: "
        "model.layers.0.self_attn.q_norm.weight"
    )


def test_a_bias_that_the_config_does_not_ask_for_is_unexpected(path: Path) -> None:
    write_tensors(path, {**read_tensors(path), "model.layers.0.self_attn.o_proj.bias": torch.ones(64)})
    assert "model.layers.0.self_attn.o_proj.bias" in refusal(path)


def test_shapes_that_differ_from_the_config_are_named(path: Path) -> None:
    edit_config(path, lambda config: config.update(kv_lora_rank=16))
    message = refusal(path)
    assert message.startswith(
        f"{path}: has 9 tensor(s) of another shape than config.json says; do the two belong together?: "
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight is [40, 64], not [24, 64]; "
    )


def test_a_config_that_cuts_layers_off_is_refused(path: Path) -> None:
    edit_config(path, lambda config: config.update(num_hidden_layers=2))
    assert refusal(path) == (
        f"{path}: has a layer 2, beyond num_hidden_layers of 2, that is no multi-token-prediction layer "
        "(no eh_proj); do config.json and weights belong together?"
    )


def test_layers_between_the_model_and_its_mtp_layer_are_not_passed_over(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "deepseek_v3")
    append_mtp(path)
    edit_config(path, lambda config: config.update(num_hidden_layers=2))
    assert f"{path}: has a layer 2, beyond num_hidden_layers of 2" in refusal(path)


def test_a_tied_head_that_is_no_copy_is_refused(path: Path) -> None:
    tensors = read_tensors(path)
    head = tensors["model.embed_tokens.weight"].clone()
    head[-1, -1] += 1
    write_tensors(path, {**tensors, "lm_head.weight": head})
    assert refusal(path) == (
        f"{path}: config.json ties the head to the embedding, but lm_head.weight differs from "
        "model.embed_tokens.weight; set tie_word_embeddings to what the model was trained with"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_that_are_not_finite_are_refused_on_reading(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = make_checkpoint(tmp_path, "youtu", dtype=dtype)
    tensors = read_tensors(path)
    tensors[NORM][5] = value
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path).read(NORM)
    assert str(caught.value) == (
        f"{path / 'model.safetensors'}: {NORM} has 1 value not finite; the checkpoint is damaged"
    )


def test_a_type_that_is_not_read_is_refused_on_reading(path: Path) -> None:
    write_tensors(path, {**read_tensors(path), NORM: torch.ones(64, dtype=torch.float64)})
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path).read(NORM)
    assert str(caught.value) == (
        f"{path / 'model.safetensors'}: {NORM} is stored as F64; bf16, fp16, fp32 and fp8 are read"
    )


def test_a_file_that_shrinks_or_goes_while_it_is_open_is_refused(path: Path) -> None:
    checkpoint, file = Checkpoint.open(path), path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(NORM)
    assert str(caught.value) == f"{file}: became shorter while it was read"
    file.unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(NORM)
    assert str(caught.value) == f"{file}: cannot be read: No such file or directory"


WEIGHT = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def fp8(path: Path) -> Path:
    to_fp8(path)
    return path


def test_an_fp8_weight_without_its_scale_is_refused(fp8: Path) -> None:
    tensors = read_tensors(fp8)
    del tensors[f"{WEIGHT}_scale_inv"]
    write_tensors(fp8, tensors)
    assert refusal(fp8) == f"model.safetensors: {WEIGHT} is stored as fp8, but {WEIGHT}_scale_inv is missing"


def test_a_scale_of_the_wrong_shape_or_type_is_refused(fp8: Path) -> None:
    tensors = read_tensors(fp8)
    for scale, found in (
        (torch.ones(2, 1), "F32 [2, 1]"),
        (torch.ones(1), "F32 [1]"),
        (torch.ones(1, 1).bfloat16(), "BF16 [1, 1]"),
    ):
        write_tensors(fp8, {**tensors, f"{WEIGHT}_scale_inv": scale})
        assert refusal(fp8) == (
            f"model.safetensors: {WEIGHT}_scale_inv is {found}; a weight of [64, 48] in blocks of 128 x 128 "
            "has F32 [1, 1]"
        )


def test_a_scale_without_an_fp8_weight_is_refused(fp8: Path) -> None:
    tensors = read_tensors(fp8)
    write_tensors(fp8, {**tensors, WEIGHT: tensors[WEIGHT].bfloat16()})
    assert refusal(fp8) == (
        f"model.safetensors: {WEIGHT}_scale_inv is the scale of an fp8 weight, but that is BF16"
    )
    del tensors[WEIGHT]
    write_tensors(fp8, tensors)
    assert refusal(fp8) == (
        f"model.safetensors: {WEIGHT}_scale_inv is the scale of an fp8 weight, but that is missing"
    )


def test_fp8_weights_under_a_config_that_does_not_say_so_are_refused(fp8: Path) -> None:
    edit_config(fp8, lambda config: config.pop("quantization_config"))
    assert refusal(fp8) == (
        "model.safetensors: model.layers.0.mlp.down_proj.weight is stored as fp8, but config.json has no "
        "quantization_config; take the config.json that was published with these weights"
    )


def test_fp8_norms_are_refused(fp8: Path) -> None:
    tensors = read_tensors(fp8)
    tensors[NORM] = tensors[NORM].to(torch.float8_e4m3fn)
    tensors[f"{NORM}_scale_inv"] = torch.ones(1)
    write_tensors(fp8, tensors)
    assert refusal(fp8) == f"model.safetensors: {NORM} is fp8 of shape [64]; only matrices are"


def test_a_scale_that_is_not_finite_is_refused_on_reading(fp8: Path) -> None:
    tensors = read_tensors(fp8)
    tensors[f"{WEIGHT}_scale_inv"][0, 0] = float("inf")
    write_tensors(fp8, tensors)
    with pytest.raises(CheckpointError, match="values not finite; the checkpoint is damaged"):
        Checkpoint.open(fp8).read(WEIGHT)
