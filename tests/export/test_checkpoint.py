"""Checkpoints that are whole: layouts, types, fp8, accounting. Broken ones are in tests/hostile."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mla_export.checkpoint import TEXT_FILES, Checkpoint
from mla_export.families import Accounting, account, family_of
from tests.checkpoints import (
    FAMILIES,
    VARIANTS,
    append_mtp,
    edit_config,
    make_checkpoint,
    read_tensors,
    to_fp8,
    write_tensors,
)

CASES = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}


def accounting(path: Path) -> Accounting:
    checkpoint = Checkpoint.open(path)
    family = family_of(checkpoint.config)
    return account(checkpoint, family, family.geometry(checkpoint.config))


def assert_reads(path: Path, expected: dict[str, torch.Tensor]) -> None:
    checkpoint = Checkpoint.open(path)
    for name, tensor in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor), name


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_every_variant_is_consumed(case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    path = make_checkpoint(tmp_path, family, **overrides)
    found = accounting(path)
    assert set(found.names) == set(found.names.values()) == set(read_tensors(path))
    assert found.ignored == {}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_are_read_as_stored(dtype: torch.dtype, shards: int, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "deepseek_v3", dtype=dtype, shards=shards)
    assert len(list(path.glob("*.safetensors"))) == shards
    expected = read_tensors(path)
    assert expected["model.norm.weight"].dtype == dtype
    assert expected["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert_reads(path, expected)


@pytest.mark.parametrize("shards", [1, 2])
def test_fp8_blocks_with_ragged_edges_are_dequantised(shards: int, tmp_path: Path) -> None:
    # 320 = 2.5 blocks, 144 and 200 are ragged too, 24-wide experts are smaller than one block
    path = make_checkpoint(tmp_path, "deepseek_v3", hidden_size=320, q_lora_rank=144, intermediate_size=200)
    expected = to_fp8(path, shards)
    checkpoint = Checkpoint.open(path)
    name = "model.layers.0.mlp.down_proj.weight"
    assert checkpoint.tensors[name].dtype == "F8_E4M3"
    assert checkpoint.tensors[f"{name}_scale_inv"].shape == (3, 2)
    assert len(torch.unique(checkpoint.read(f"{name}_scale_inv"))) == 6
    assert_reads(path, expected)
    found = accounting(path)
    assert set(found.names.values()) == set(expected)
    assert found.ignored == {}


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "youtu", shards=2)
    repository = tmp_path / "models--tencent--Youtu"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in list(source.iterdir()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    checkpoint = Checkpoint.open(snapshot)
    assert torch.isfinite(checkpoint.read("model.embed_tokens.weight")).all()
    assert accounting(snapshot).ignored == {}


def test_a_folder_that_is_itself_a_link_is_opened(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", "youtu")
    (tmp_path / "link").symlink_to(source)
    assert accounting(tmp_path / "link").ignored == {}


@pytest.mark.parametrize("texts", [(), ("tokenizer.json", "chat_template.jinja"), TEXT_FILES], ids=str)
def test_hashes_are_those_of_config_shards_and_text_files(texts: tuple[str, ...], tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "youtu", shards=2)
    for name in TEXT_FILES:
        (path / name).unlink(missing_ok=True)
    for name in (*texts, "README.md"):
        (path / name).write_text(name)
    heard: list[int] = []
    hashes = Checkpoint.open(path).hashes(heard.append)
    files = [path / "config.json", *path.glob("*.safetensors"), *(path / name for name in texts)]
    assert hashes == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert sum(heard) == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe_lite"])
def test_multi_token_prediction_layers_are_ignored_with_their_reason(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, family)
    consumed = set(read_tensors(path))
    append_mtp(path, shards=2)
    found = accounting(path)
    assert set(found.names.values()) == consumed
    assert "model.layers.3.eh_proj.weight" in found.ignored
    assert set(found.ignored) == set(read_tensors(path)) - consumed
    assert set(found.ignored.values()) == {
        "multi-token-prediction layer: it drafts ahead and has no part in the model's own logits"
    }


def test_fp8_multi_token_prediction_layers_are_ignored_with_their_scales(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "deepseek_v3")
    append_mtp(path)
    to_fp8(path)
    ignored = accounting(path).ignored
    assert "model.layers.3.self_attn.o_proj.weight_scale_inv" in ignored


def test_rotary_buffers_and_the_copy_of_a_tied_head_are_ignored(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "youtu")
    tensors = read_tensors(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_tensors(path, tensors)
    assert accounting(path).ignored == {
        "lm_head.weight": "tied head: a copy of model.embed_tokens.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq": (
            "rotary buffer: the tables are computed from config.json"
        ),
    }


def test_the_text_model_of_a_vision_model_is_taken_by_its_prefix(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "deepseek_v3")
    tensors = {f"language_model.{name}": tensor for name, tensor in read_tensors(path).items()}
    write_tensors(path, {**tensors, "vision_tower.patch_embed.proj.weight": torch.zeros(2, 3)})
    text = json.loads((path / "config.json").read_text())
    edit_config(path, lambda c: (c.clear(), c.update(model_type="kimi_k25", text_config=text)))
    found = accounting(path)
    assert found.names["lm_head.weight"] == "language_model.lm_head.weight"
    assert set(found.names.values()) == set(tensors)
    assert found.ignored == {
        "vision_tower.patch_embed.proj.weight": "vision part: the text model alone is exported"
    }


def test_opening_and_accounting_need_no_torch(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, "deepseek_v2")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\n"
        "from mla_export.checkpoint import Checkpoint\n"
        "from mla_export.families import account, family_of\n"
        f"c = Checkpoint.open({str(path)!r}); f = family_of(c.config)\n"
        "print(len(account(c, f, f.geometry(c.config)).names))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(read_tensors(path))
