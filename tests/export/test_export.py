"""From checkpoint to bundle: what it holds, that it is the same twice, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import onnx
import pytest
import torch

import mla_runtime
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.families import account, family_of
from mla_export.layout import layout
from mla_export.params import Recipes
from mla_export.plan import Plan
from mla_export.trace import TracedModel
from mla_runtime.errors import CheckpointError, ConfigError, ExportError
from tests.checkpoints import VARIANTS, append_mtp, edit_config, make_checkpoint, read_tensors, write_tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3", num_hidden_layers=2)


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("out") / "bundle", chunk=16)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_manifest_says_what_is_there(bundle, checkpoint):
    manifest = json.loads((bundle / "bundle.json").read_text())
    files = digests(bundle)
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: value for name, value in files.items() if name != "bundle.json"
    }
    assert manifest["source"] == digests(checkpoint)
    assert manifest["absorb"] == "factored"
    assert manifest["precision"] == {
        "compute": "float32",
        "weights": "float32",
        "head": "float32",
        "group": None,
        "method": None,
        "activations": "float32",
        "cache": "float32",
        "rope": "float32",
    }
    held = {(row["layer"], row["holds"]): row["row"] for row in manifest["cache"]}
    assert held == {(0, "latent"): [32], (0, "rope"): [8], (1, "latent"): [32], (1, "rope"): [8]}
    assert len(manifest["canary"]["top"]) == 5


def test_both_graphs_share_one_weights_file(bundle):
    places = []
    for phase in ("step", "prompt"):
        model = onnx.load(bundle / f"{phase}.onnx", load_external_data=False)
        onnx.checker.check_model(str(bundle / f"{phase}.onnx"))
        external = {}
        for tensor in model.graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                assert entries["location"] == "weights.data"
                assert int(entries["offset"]) % 4096 == 0
                external[tensor.name] = (int(entries["offset"]), int(entries["length"]))
        places.append(external)
    assert places[0] == places[1]
    assert len(places[0]) > 20
    assert (bundle / "step.onnx").stat().st_size < 200_000


def test_same_input_same_bytes(checkpoint, bundle, tmp_path):
    again = export(checkpoint, tmp_path / "bundle", chunk=16)
    assert digests(again) == digests(bundle)


def test_tied_head_is_stored_once(tmp_path):
    family, own = VARIANTS["v3_tied"]
    source = make_checkpoint(tmp_path / "model", family, **own)
    model = onnx.load(export(source, tmp_path / "bundle") / "step.onnx", load_external_data=False)
    names = [tensor.name for tensor in model.graph.initializer]
    assert "embed.weight" in names
    assert "head.weight" not in names


def test_bundle_opens_and_runs(bundle):
    with mla_runtime.open(bundle).session() as session:
        assert session.prefill([[3, 1, 4]]).shape == (1, 256)
        assert session.step([1]).shape == (1, 256)


def test_mtp_layers_are_left_out(checkpoint, bundle, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    append_mtp(source)
    out = export(source, tmp_path / "bundle", chunk=16)
    assert digests(out)["weights.data"] == digests(bundle)["weights.data"]


@pytest.mark.parametrize(
    "name", ["deepseek_v2", "minicpm3_biases", "v2_biases", "v3_no_q_lora", "glm4_moe_lite"]
)
@pytest.mark.parametrize("absorb", ["factored", "merged", "expanded"])
def test_every_weight_has_a_recipe_of_its_shape(name, absorb, tmp_path):
    family_name, own = VARIANTS.get(name, (name, {}))
    source = Checkpoint.open(make_checkpoint(tmp_path / "model", family_name, **own))
    family = family_of(source.config)
    geometry = family.geometry(source.config)
    names = account(source, family, geometry).names
    read: set[str] = set()

    def reader(logical: str) -> torch.Tensor:
        read.add(logical)
        return source.read(names[logical])

    recipes = Recipes(geometry, absorb, torch.float32, reader)
    for weight in layout(Plan.floats(geometry, absorb, "float32")).parameters:
        pieces = list(recipes(weight.name))
        assert tuple(torch.cat(pieces).shape) == weight.shape if weight.shape else len(pieces) == 1, (
            weight.name
        )
    assert read == set(family.tensors(geometry))  # nothing of the checkpoint is left unread


def test_float16_overflow_names_the_weight(checkpoint, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    tensors = read_tensors(source)
    tensors["model.layers.1.mlp.experts.3.down_proj.weight"][0, 0] = 1e6
    write_tensors(source, tensors)
    wanted = (
        r"layers\.1\.moe\.experts\.down: the largest value, 1e\+06, is not finite in float16 \(limit 6\.55e"
    )
    with pytest.raises(ExportError, match=wanted):
        export(source, tmp_path / "bundle", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_float16_overflow_of_a_value_names_the_operator_and_layer(checkpoint, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    tensors = read_tensors(source)
    tensors["model.layers.0.mlp.down_proj.weight"] *= 3e4  # each weight fits; what they sum to does not
    write_tensors(source, tensors)
    export(source, tmp_path / "fp32")
    with pytest.raises(ExportError, match=r"layers\.0\.mlp\.down: its result is not finite in float16"):
        export(source, tmp_path / "bundle", dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32", "model"]


def test_target_is_checked_before_any_work(checkpoint, bundle, tmp_path):
    with pytest.raises(ExportError, match="is there already; give --force"):
        export(checkpoint, bundle)
    with pytest.raises(ConfigError, match=re.escape("chunk 0 is not in 1 … 512")):
        export(checkpoint, tmp_path / "bundle", chunk=0)
    with pytest.raises(ConfigError, match="absorb 'folded': choose one of factored, merged, expanded"):
        export(checkpoint, tmp_path / "bundle", absorb="folded")
    with pytest.raises(ConfigError, match="--head is for weights in int8 or int4"):
        export(checkpoint, tmp_path / "bundle", head="int4")
    with pytest.raises(ConfigError, match="--group is for weights in int8 or int4"):
        export(checkpoint, tmp_path / "bundle", group=128)
    for option, words in (({"group": 32}, "--group 32"), ({"head": "int4"}, "--head int4")):
        with pytest.raises(ConfigError, match=f"{words} with --weights int8: portable graphs have"):
            export(checkpoint, tmp_path / "bundle", weights="int8", **option)
    assert list(tmp_path.iterdir()) == []


def test_a_tied_head_has_no_bits_of_its_own(tmp_path):
    tied = make_checkpoint(tmp_path / "model", "youtu", tie_word_embeddings=True)
    options = {"target": "ort-cpu", "weights": "int4"}
    with pytest.raises(ConfigError, match=r"--head int4: this model's head is its embedding's table"):
        export(tied, tmp_path / "bundle", **options, head="int4")
    export(tied, tmp_path / "bundle", **options, head="int8")


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_free_disk_is_checked_before_anything_is_traced_or_read(checkpoint, tmp_path, monkeypatch, weights):
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_text("old")
    target = "portable" if weights == "fp16" else "ort-cpu"
    usage = namedtuple("usage", "total used free")
    found = re.escape(f"{out}: 0.07 GB are needed and 0.01 GB are free; free some or choose another disk")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 10**7))
        patch.setattr(TracedModel, "__init__", lambda *_, **__: pytest.fail("blocks were traced"))
        patch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a weight was read"))
        with pytest.raises(ExportError, match=found):
            export(checkpoint, out, target=target, weights=weights, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (out / "bundle.json").read_text() == "old"


def test_special_id_outside_the_vocabulary(checkpoint, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    edit_config(source, lambda config: config.update(eos_token_id=256))
    (source / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=re.escape("special token id 256 is not in 0 … 255")):
        export(source, tmp_path / "bundle")


def test_text_files_come_along(tmp_path):
    sample = Path(__file__).parents[2] / "samples" / "tiny-mla"
    out = export(sample, tmp_path / "bundle")
    manifest = json.loads((out / "bundle.json").read_text())
    text = manifest["text"]
    assert (out / "tokenizer.json").read_bytes() == (sample / "tokenizer.json").read_bytes()
    assert text["stop_ids"] == [json.loads((sample / "generation_config.json").read_text())["eos_token_id"]]
    assert "message" in (out / text["chat_template"]).read_text()
    ids = mla_runtime.open(out).text.encode("def read_")
    assert len(ids) > 1


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json", "generation_config.json"]
)
def test_a_link_out_of_the_checkpoint_is_not_followed(checkpoint, tmp_path, name):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    (tmp_path / "secret").write_text("{}")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        export(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"[" * 200_000, "tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: holds a list where an object belongs"),
        ("tokenizer.json", b"{broken", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", b'{"model": {}}', "tokenizer.json is not a tokenizer"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": {"a": 0, "b": 256}}}',
            "gives ids up to 256, and the model has rows for 0 … 255",
        ),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja is not UTF-8"),
        (
            "generation_config.json",
            b" " * (2**24 + 1),
            "generation_config.json is larger than the limit of 16000000",
        ),
    ],
)
def test_broken_text_files(checkpoint, tmp_path, name, content, message):
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    (source / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        export(source, tmp_path / "bundle")


def test_wrapped_text_model(checkpoint, bundle, tmp_path):
    """As Kimi-K2.5 has it: the text model's configuration and tensors under a name of their own."""
    source = tmp_path / "model"
    shutil.copytree(checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    wrapped = {"model_type": "kimi_k25", "text_config": {**config, "model_type": "kimi_k2"}}
    (source / "config.json").write_text(json.dumps(wrapped))
    write_tensors(source, {f"language_model.{name}": t for name, t in read_tensors(source).items()})
    out = export(source, tmp_path / "bundle", chunk=16)
    assert digests(out)["weights.data"] == digests(bundle)["weights.data"]


def test_short_context_needs_no_chunk(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "bundle", max_context=96)
    assert json.loads((out / "bundle.json").read_text())["graphs"]["prompt"]["chunk"] == 96
