"""Calibrated exports: moments of the right inputs, the same bytes twice, one layer at a time."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from mla_export import calibrate, weights_file
from mla_export.calibrate import Calibrated
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.layout import Layout, layout
from mla_export.plan import Forms
from mla_export.quantize import Statistics, quantize_blocks
from mla_export.reference import Reference
from mla_runtime.errors import ConfigError, InputError
from mla_runtime.manifest import Calibration
from tests.checkpoints import VARIANTS, make_checkpoint, read_tensors, write_tensors
from tests.parity.raw_graph import RawGraph
from tests.quick_trace import quick_tracing

SAMPLE = Path(__file__).parents[2] / "samples" / "tiny-mla"
INT4 = {"target": "ort-cpu", "weights": "int4", "chunk": 16}
WINDOWS = np.random.default_rng(0).integers(0, 256, (6, 64)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("calibrate") / "model", "deepseek_v3")


@pytest.fixture
def ids(tmp_path) -> Path:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(WINDOWS))
    return path


def places(checkpoint: Path, absorb: str = "factored") -> Layout:
    geometry = Reference(Checkpoint.open(checkpoint)).geometry
    forms = Forms.choose("ort-cpu", absorb, None, "int4", 32, "float", "float", head=None, calibrated=True)
    return layout(forms.plan(geometry))


class Spy:
    """Records the moments that each matrix is quantised with; a fast stand-in for the arithmetic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moments: dict[str, Statistics] = {}
        monkeypatch.setattr(calibrate, "quantize_calibrated", self.calibrated)

    def calibrated(self, matrix, bits, group, moments, *, scale_dtype, positive, name):
        assert moments.inputs == matrix.shape[1]
        assert not positive  # blocks have scales of either sign
        self.moments[name] = moments
        return quantize_blocks(matrix, bits, group, scale_dtype=scale_dtype, name=name)


def ask(quantiser: Calibrated, made: Layout, keep: Callable[[str], bool] = lambda name: True) -> None:
    """Have every parameter in blocks quantised, with weights of no interest."""
    for parameter in made.parameters:
        if parameter.storage and keep(parameter.name):
            shape = parameter.matrix
            matrix = torch.ones(shape.outputs[-1], shape.inputs)
            experts = range(parameter.shape[0]) if shape.stack else [None]
            for expert in experts:
                quantiser(parameter, matrix, expert)


HOOKED = {
    "attention.q_down.weight": "self_attn.q_a_proj",
    "attention.kv_down.weight": "self_attn.kv_a_proj_with_mqa",
    "attention.k_up.weight": "self_attn.kv_b_proj",
    "attention.v_up.weight": "self_attn.kv_b_proj",
    "attention.o_proj.weight": "self_attn.o_proj",
    "mlp.gate_up.weight": "mlp.up_proj",
    "mlp.down.weight": "mlp.down_proj",
    "moe.shared.gate_up.weight": "mlp.shared_experts.up_proj",
    "moe.shared.down.weight": "mlp.shared_experts.down_proj",
    "moe.experts.gate_up[0]": "mlp.shared_experts.up_proj",
}


@pytest.mark.parametrize("absorb", ["factored", "merged", "expanded"])
@pytest.mark.parametrize("name", ["deepseek_v2", "v3_no_q_lora", "minicpm3", "glm4_moe_lite"])
def test_moments_are_those_of_the_whole_model(tmp_path, monkeypatch, name, absorb):
    """Inputs are caught by hooks on Hugging Face's whole class, as its own loader loads it."""
    family, own = VARIANTS.get(name, (name, {}))
    path = make_checkpoint(tmp_path / "model", family, **own)
    made, spy = places(path, absorb), Spy(monkeypatch)
    ask(Calibrated(Checkpoint.open(path), absorb, 512, WINDOWS, made.parameters), made)

    reference = Reference(Checkpoint.open(path), 512)
    geometry = reference.geometry
    model = reference.hf_class("ForCausalLM").from_pretrained(path, dtype=torch.float32)
    model.model.rotary_emb = reference.rotary()
    wanted: dict[str, Statistics] = {}

    def catch(module: str):
        def hook(_module, inputs, _out):
            wanted.setdefault(module, Statistics(inputs[0].shape[-1])).add(inputs[0])

        return hook

    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(catch(module_name))
    with torch.inference_mode():
        for window in WINDOWS:
            model(torch.tensor([window]), use_cache=False)
    q_up = "self_attn.q_proj" if geometry.q_lora_rank is None else "self_attn.q_b_proj"
    compared = 0
    for parameter, moments in spy.moments.items():
        _, layer, within = parameter.split(".", 2)
        module = {**HOOKED, "attention.q_up.weight": q_up}.get(within)
        if module:
            want = wanted[f"model.layers.{layer}.{module}"]
            assert moments.tokens == want.tokens == 384
            torch.testing.assert_close(
                moments.curvature().hessian, want.curvature().hessian, rtol=1e-3, atol=1e-3
            )
            compared += 1
    o_projs = [parameter for parameter in spy.moments if parameter.endswith("o_proj.weight")]
    assert len(o_projs) == (0 if absorb == "merged" else geometry.num_hidden_layers)
    assert compared >= 4 * geometry.num_hidden_layers
    assert "head.weight" not in spy.moments
    if moe := geometry.moe:
        downs = [m for parameter, m in spy.moments.items() if "1.moe.experts.down[" in parameter]
        assert sum(m.tokens for m in downs) == 384 * moe.num_experts_per_tok


def test_a_later_layer_can_be_the_first_that_is_asked_for(checkpoint, monkeypatch):
    made, spy = places(checkpoint), Spy(monkeypatch)
    source = Checkpoint.open(checkpoint)
    ask(Calibrated(source, "factored", 512, WINDOWS, made.parameters), made)
    whole = dict(spy.moments)
    spy.moments.clear()
    later = Calibrated(source, "factored", 512, WINDOWS, made.parameters)
    ask(later, made, lambda name: name.startswith("layers.2."))
    assert spy.moments
    for name, moments in spy.moments.items():
        assert torch.equal(moments.curvature().hessian, whole[name].curvature().hessian)


def test_a_layer_and_its_moments_are_freed_before_the_next(checkpoint, monkeypatch):
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = {"moments": 0, "layers": 0}

    class Counted(Statistics):
        def __init__(self, inputs: int) -> None:
            super().__init__(inputs)
            alive.add(self)
            most["moments"] = max(most["moments"], sum(isinstance(one, Statistics) for one in alive))

    build = Reference.layer

    def layer(self, *arguments):
        gc.collect()
        assert not alive, "something of the layer before is still there"
        module = build(self, *arguments)
        alive.add(module)
        most["layers"] += 1
        return module

    monkeypatch.setattr(calibrate, "Statistics", Counted)
    monkeypatch.setattr(Reference, "layer", layer)
    made = places(checkpoint)
    ask(Calibrated(Checkpoint.open(checkpoint), "factored", 512, WINDOWS, made.parameters), made)
    experts = next(p.shape[0] for p in made.parameters if p.name.endswith("experts.down"))
    assert most["layers"] == 3
    assert most["moments"] <= experts + 5


def weights_of(bundle: Path) -> str:
    return hashlib.sha256((bundle / "weights.data").read_bytes()).hexdigest()


def test_same_text_same_bytes_and_what_the_manifest_says(checkpoint, ids, tmp_path):
    told = []
    with quick_tracing():
        first = export(
            checkpoint, tmp_path / "1", calibrate=ids, calibrate_tokens=256, told=told.append, **INT4
        )
        again = export(checkpoint, tmp_path / "2", calibrate=ids, calibrate_tokens=256, **INT4)
        plain = export(checkpoint, tmp_path / "3", told=told.append, **INT4)
    assert weights_of(first) == weights_of(again) != weights_of(plain)
    manifest = RawGraph(first, "step").bundle.manifest
    assert manifest.calibration == Calibration(hashlib.sha256(ids.read_bytes()).hexdigest(), 256)
    assert manifest.precision.method == "calibrated"
    assert manifest.precision.words == "float32, calibrated int4 weights in groups of 32, head int8"
    assert RawGraph(plain, "step").bundle.manifest.precision.method == "searched"
    assert RawGraph(plain, "step").bundle.manifest.calibration is None
    calibrated, searched = told
    assert calibrated.by_parameter.keys() == searched.by_parameter.keys()
    assert 0.02 < searched.overall < calibrated.overall < 0.2  # nearer in its outputs, not in its weights


def test_an_expert_that_no_token_chose_is_rounded(checkpoint, ids, tmp_path):
    source = shutil.copytree(checkpoint, tmp_path / "model")
    tensors = read_tensors(source)
    tensors["model.layers.1.mlp.gate.e_score_correction_bias"][3] = -100.0
    write_tensors(source, tensors)
    with quick_tracing():
        one = export(source, tmp_path / "calibrated", calibrate=ids, calibrate_tokens=256, **INT4)
        other = export(source, tmp_path / "searched", **INT4)
    found, plain = (experts_down(bundle) for bundle in (one, other))
    same = [np.array_equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert same[2:4] == [True, True]  # a group's score is that of its two experts: neither is chosen
    assert sum(same) <= 4  # of the others, one may have seen too few tokens to differ


def experts_down(bundle: Path) -> list[np.ndarray]:
    """Give the codes of each expert's down projection in layer 1."""
    held = {t.name: t for t in onnx.load(bundle / "model.onnx").graph.initializer}
    names = [f"layers.1.moe.experts.down.codes.{expert}" for expert in range(8)]
    return [onnx.numpy_helper.to_array(held[name]) for name in names]


def test_it_beats_the_search_on_other_text(tmp_path):
    """Calibrated with the first half of the held-out text, measured on 3,072 tokens of the second."""
    text = (SAMPLE / "held_out.txt").read_text(encoding="utf-8")
    file = tmp_path / "text.txt"
    file.write_text(text[: len(text) // 2], encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    tokens = tokenizer.encode(text[len(text) // 2 :], add_special_tokens=False).ids
    rows = [[0, *tokens[at : at + 511]] for at in range(0, 6 * 4500, 4500)]
    wide = Reference(Checkpoint.open(SAMPLE)).forward(rows)["float32"]
    means = []
    with quick_tracing():
        for options in ({}, {"calibrate": file, "calibrate_tokens": 4096}):
            bundle = export(SAMPLE, tmp_path / str(len(options)), **INT4, **options)
            graph = RawGraph(bundle, "prompt")
            means.append(
                np.mean([divergence(w.logits, graph([r])["logits"]) for w, r in zip(wide, rows, strict=True)])
            )
    searched, calibrated = means
    assert calibrated < 0.7 * searched < 0.7 * 8e-3


def divergence(want: np.ndarray, got: np.ndarray) -> float:
    p, q = (torch.from_numpy(np.asarray(x)).double().log_softmax(-1) for x in (want, got))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_floats_are_not_calibrated(checkpoint, ids, tmp_path):
    with pytest.raises(ConfigError, match="--calibrate is for weights in int8 or int4"):
        export(checkpoint, tmp_path / "b", calibrate=ids)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "a.txt: cannot be read (No such file"),
        ("a.txt", b"", "a.txt: is empty"),
        ("a.txt", b" \n\n", "a.txt: is empty"),
        (
            "a.txt",
            b"caf\xe9 " * 1000,
            "a.txt: is not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 3",
        ),
        ("a.txt", b"def read_", "less than a window of 2047; give a longer file"),
        ("a.txt", b"a" * 16_000_001, "a.txt: larger than the 16000000 bytes that calibration reads"),
        ("a.json", b"[[1, 2", "a.json: not valid JSON"),
        ("a.json", b"[" * 100_000, "a.json: not valid JSON"),
        ("a.json", b'{"rows": []}', "a.json: is not a list of rows of token ids"),
        ("a.json", b"[1, 2]", "a.json: is not a list of rows of token ids"),
        ("a.json", b"[[1], [2048]]", "a.json: row 1 has 2048, not a token id in 0 … 2047"),
        ("a.json", b"[[1, true]]", "a.json: row 0 has True, not a token id"),
        ("a.json", b"[]", "a.json: 0 tokens, less than a window of 2048"),
        ("a.json", b"[[1, 2], [3]]", "a.json: 3 tokens, less than a window of 2048"),
    ],
)
def test_files_that_nothing_can_be_calibrated_with(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(weights_file, "write", lambda *_: pytest.fail("weights were written"))
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        export(SAMPLE, tmp_path / "bundle", calibrate=file, **INT4)
    assert message in str(error.value)
    assert not (tmp_path / "bundle").exists()


def test_a_text_needs_a_tokenizer_and_enough_tokens(checkpoint, ids, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text " * 1000)
    with pytest.raises(
        InputError, match=r"the checkpoint has no tokenizer\.json; give token ids in a \.json"
    ):
        export(checkpoint, tmp_path / "bundle", calibrate=text, **INT4)
    with pytest.raises(InputError, match="100 tokens to calibrate with: give at least 128"):
        export(checkpoint, tmp_path / "bundle", calibrate=ids, calibrate_tokens=100, **INT4)
