"""`compare-attention`: what it measures is what the graphs hold, and what it says is what it measured."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from mla_export import cli
from mla_export.attention import measure as measuring
from mla_export.attention import papers, text
from mla_export.attention.cases import CASES, drawn_rows, drawn_weights, shape_of, stored, tables
from mla_export.attention.graphs import TARGETS, Graph
from mla_export.attention.measure import measure, relative_rms
from mla_export.commands import compare_attention as command
from mla_export.costs import attention_elements
from mla_export.inspect import inspect
from mla_export.passage import Passage
from mla_graphs.baselines import KINDS, Attention, Shape, layer
from mla_runtime.errors import BackendError, CapacityError, ConfigError, InputError
from tests.checkpoints import make_checkpoint
from tests.export.blocked import blocked

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "tests" / "configs" / "DeepSeek-V2-Lite.json"
SAMPLE = ROOT / "samples" / "tiny-mla"
DEPTHS = [7, 40]


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(SAMPLE)[1]


@pytest.fixture(scope="module")
def measured(shape):
    return measure(shape, DEPTHS, "ort:cpu", 1, seconds=0)


def test_default_is_the_published_shape():
    name, shape = shape_of(None)
    published = shape_of(CONFIG)[1]
    assert name == "DeepSeek-V2-Lite"
    assert shape.softmax_scale == pytest.approx(published.softmax_scale, rel=1e-12)
    assert dataclasses.replace(shape, softmax_scale=0) == dataclasses.replace(published, softmax_scale=0)


def test_heads_that_cannot_rotate_so_much_are_refused(tmp_path):
    config = json.loads(CONFIG.read_text())
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config, "v_head_dim": 32}))
    with pytest.raises(ConfigError, match="qk_rope_head_dim is 64 and v_head_dim 32"):
        shape_of(file)


def test_bytes_are_those_that_the_formula_gives(shape, measured):
    s, heads = shape, shape.num_attention_heads
    rows = {  # how many rows a token has, and the widths of each
        "mha": (heads, (s.v_head_dim, s.v_head_dim)),
        "gqa": (s.groups, (s.v_head_dim, s.v_head_dim)),
        "mqa": (1, (s.v_head_dim, s.v_head_dim)),
        "expanded": (heads, (s.qk_nope_head_dim + s.qk_rope_head_dim, s.v_head_dim)),
        "mla": (1, (s.kv_lora_rank, s.qk_rope_head_dim)),
    }
    assert [(case.kind, case.cache) for case in measured.cases] == list(CASES)
    for case in measured.cases:
        count, widths = rows[case.kind]
        expected = {
            "float32": 4 * sum(widths),
            "int8": sum(widths) + 2 * 4,
            "int8 latent": widths[0] + 4 + 4 * widths[1],
        }[case.cache]
        assert case.groups == count
        assert case.elements == count * sum(widths)
        assert case.cache_bytes == count * expected


def test_elements_are_those_of_the_paper():
    """Table 1 of arXiv 2405.04434; DeepSeek-V2 has a latent of 4 d_h and a rotary key of d_h / 2."""
    shape = shape_of(ROOT / "tests" / "configs" / "DeepSeek-V2.json")[1]
    d_h, n_h = 128, 128
    said = {kind: papers.elements(shape, kind) for kind in KINDS}
    assert said == {
        "mha": 2 * n_h * d_h, "gqa": 2 * 8 * d_h, "mqa": 2 * d_h, "expanded": None, "mla": 9 * d_h // 2,
    }  # fmt: skip
    for kind, elements in said.items():
        attention = Attention(shape, kind, "float32")
        counted = attention.groups * sum(attention.widths.values())
        assert elements in (None, counted)
    assert 95 * said["gqa"] == papers.DEEPSEEK_67B
    assert 60 * said["mla"] == papers.DEEPSEEK_V2
    assert papers.elements_saved() == pytest.approx(0.822, abs=5e-4)
    assert papers.bits_saved() == pytest.approx(papers.SAID, abs=5e-4)


def test_weights_are_those_of_the_projections(shape, measured):
    s, heads = shape, shape.num_attention_heads
    found = {case.kind: case.weights for case in measured.cases}
    size = s.hidden_size * s.v_head_dim
    assert found["mha"] == 4 * size * heads
    assert found["gqa"] == size * (2 * heads + 2 * s.groups)
    assert found["mqa"] == size * (2 * heads + 2)
    assert found["mla"] == attention_elements(inspect(SAMPLE).geometry, "factored") == found["expanded"]


def test_points_hold_each_case_at_each_depth(measured):
    assert [(p.kind, p.cache) for p in measured.points] == [*CASES, *CASES]
    assert [p.depth for p in measured.points] == [depth for depth in DEPTHS for _ in CASES]
    for point in measured.points:
        (base,) = (
            p for p in measured.points if (p.kind, p.cache, p.depth) == ("mla", "float32", point.depth)
        )
        assert point.core_ratio == pytest.approx(point.core_seconds / base.core_seconds)
        assert point.layer_ratio == pytest.approx(point.layer_seconds / base.layer_seconds)
        if point.cache == "float32":
            assert point.error is None
        else:  # 8 bits of random rows: neither exact nor useless
            assert 1e-3 < point.error < 5e-2


@pytest.mark.parametrize("codes", ["int8", "uint8"])
@pytest.mark.parametrize(("kind", "cache"), CASES)
def test_rows_are_stored_as_the_graph_stores_them(shape, kind, cache, codes):
    attention = Attention(shape, kind, cache, codes)
    model = layer(attention)
    target = next(t for t, c in (("portable", "int8"), ("ort-cpu", "uint8")) if c == codes)
    weights = {**drawn_weights(attention, model), **tables(shape, 8)}
    hidden = np.random.default_rng(0).standard_normal((1, 6, shape.hidden_size)).astype(np.float32)
    given = {
        "hidden": hidden,
        "position_ids": np.arange(6)[None],
        "past_lengths": np.array([0]),
        "new_lengths": np.array([6]),
    }
    found = {}
    for a in (attention, Attention(shape, kind, "float32", codes)):
        past = {n: v * 0 for n, v in stored(a, drawn_rows(a, 1)).items()}
        made = Graph(layer(a), target, 1)({**weights, **past, **given})
        found[a.cache] = {row.name: made[row.present.name] for row in a.rows}
    expected = stored(attention, found["float32"])
    for row in attention.rows:
        np.testing.assert_array_equal(found[cache][row.name], expected[row.past.name])


def test_relative_rms():
    assert relative_rms(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)


def test_rows_that_do_not_fit_are_refused(shape, monkeypatch):
    monkeypatch.setattr(measuring, "memory_limit", lambda: 10**6)
    with pytest.raises(CapacityError, match=r"at depth 1000 .* more than 60% of the 0\.0 GB here"):
        measure(shape, [10, 1000], "ort:cpu")


def test_a_backend_that_is_not_there_says_why(monkeypatch):
    with pytest.raises(BackendError, match="no backend 'ort:cuda' for single graphs; known are ort:cpu"):
        measure(shape_of(SAMPLE)[1], [8], "ort:cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="onnxruntime is not installed"):
        measure(shape_of(SAMPLE)[1], [8], "ort:cpu")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(command, "measure", functools.partial(measure, seconds=0))
    monkeypatch.setattr(measuring, "ROUNDS", 2)


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(["compare-attention", "--quiet", "--threads", "1", *args])
    return code, *capsys.readouterr()


def test_tables_and_plot(quick, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "100")
    svg = tmp_path / "a.svg"
    args = ("--like", str(SAMPLE), "--depths", "8,16", "--backends", "ort:cpu,ort:cuda", "--svg", str(svg))
    code, out, err = run(capsys, *args)
    assert (code, err) == (0, "")
    assert "one layer of attention, 6 query heads, hidden size 192" in out
    assert "MLA caches 79.2% less than MHA" in out
    assert "MLA caches 1.25 times as much as MQA" in out
    assert "ort:cuda   no backend 'ort:cuda' for single graphs; known are ort:cpu" in out
    assert "MHA 6 384 384 1.5 KiB 432 B 100.0%" in " ".join(out.split())
    told = "".join(ET.parse(svg).getroot().itertext())
    for name in (
        "MHA",
        "GQA, 3 groups",
        "MQA",
        "MLA, expanded",
        "MLA, absorbed",
        "MLA, absorbed, int8 latent",
    ):
        assert name in told
    assert "tokens in the cache" in told


def test_a_narrow_terminal_gets_more_tables_and_whole_numbers(quick, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "--like", str(SAMPLE), "--depths", "8,9,10,11,12,13")
    assert code == 0
    assert "…" not in out
    assert out.count("A step's attention alone") == 2
    lines = [line for line in out.splitlines() if not line.startswith(str(SAMPLE))]
    assert max(len(line.rstrip()) for line in lines) <= 80
    for depth in range(8, 14):
        assert len(re.findall(rf"random, {depth}\b", out)) == 1


def test_json(quick, capsys):
    code, out, _ = run(capsys, "--like", str(SAMPLE), "--depths", "8", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["shape"]["groups"] == 3
    assert found["papers"]["elements_per_token_and_layer"]["mla"] == 80
    (backend,) = found["backends"]
    assert {(case["kind"], case["cache"]) for case in backend["cases"]} == set(CASES)
    assert all(point["depth"] == 8 and point["core_seconds"] > 0 for point in backend["points"])
    assert found["absent"] == found["text"] == {}


def test_torch_and_matplotlib_are_not_needed():
    missing = {"torch", "transformers", "safetensors", "matplotlib"}
    like = ("compare-attention", "--quiet", "--threads", "1", "--depths", "8", "--like", str(SAMPLE))
    done = blocked(missing, *like)
    assert (done.returncode, done.stderr) == (0, "")
    done = blocked(missing, *like, "--svg", "a.svg")
    assert done.returncode == 3
    assert "matplotlib is not installed; try: pip install 'mla-export[report]'" in done.stderr
    done = blocked({"onnx_ir"}, *like)
    assert done.returncode == 3
    assert "onnx_ir is not installed" in done.stderr


def test_no_backend_at_all_is_an_error(capsys):
    code, out, err = run(capsys, "--backends", "ort:cuda")
    assert (code, out) == (3, "")
    assert err == "mla-export: no backend 'ort:cuda' for single graphs; known are ort:cpu\n"


def test_a_plot_that_cannot_be_written_is_an_error(quick, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "nowhere" / "a.svg"
    code, _, err = run(capsys, "--like", str(SAMPLE), "--depths", "8", "--svg", str(file))
    assert code == 3
    assert f"{file}: there is no folder" in err
    kept = tmp_path / "kept.svg"
    kept.write_text("mine")
    code, _, err = run(capsys, "--like", str(SAMPLE), "--depths", "8", "--svg", str(kept))
    assert (code, kept.read_text()) == (3, "mine")
    assert "--force" in err
    assert run(capsys, "--like", str(SAMPLE), "--depths", "8", "--svg", str(kept), "--force")[0] == 0
    assert kept.read_text().startswith("<")


@pytest.mark.parametrize("depths", ["0", "", "1k,x", "-4", "1.5k"])
def test_depths_that_are_none(depths, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare-attention", f"--depths={depths}"])
    assert stopped.value.code == 2
    assert "like 4k,32k,1000" in capsys.readouterr().err


def test_text_needs_a_checkpoint(capsys):
    assert run(capsys, "--text", "x")[0] == 2
    with pytest.raises(InputError, match="real rows need a checkpoint with weights"):
        text.measure_text(CONFIG, "x", "ort:cpu")


@pytest.mark.parametrize("family", ["deepseek_v2", "minicpm3", "youtu"])
def test_layers_of_a_text_are_those_of_hugging_face(family, tmp_path, monkeypatch):
    """The float32 graphs give what the checkpoint's own attention gives: the error is that of int8."""
    source = make_checkpoint(tmp_path / "checkpoint", family)
    file = tmp_path / "ids.json"
    rng = np.random.default_rng(2)
    vocab = json.loads((source / "config.json").read_text())["vocab_size"]
    file.write_text(json.dumps([rng.integers(3, vocab, 128).tolist()]))
    monkeypatch.setattr(text, "TOKENS", 128)
    monkeypatch.setattr(text, "QUERIES", 32)
    theirs, ours = [], []

    apply = Passage.apply

    def watched(self, index, weights):
        build = type(self.reference).layer

        def hooked(reference, *args):
            module = build(reference, *args)
            module.self_attn.register_forward_hook(lambda _m, _i, out: theirs.append(out[0].clone()))
            return module

        monkeypatch.setattr(type(self.reference), "layer", hooked)
        apply(self, index, weights)
        monkeypatch.setattr(type(self.reference), "layer", build)

    errors = text._errors
    monkeypatch.setattr(Passage, "apply", watched)
    monkeypatch.setattr(text, "_errors", lambda passed: ours.append(passed) or errors(passed))
    found = text.measure_text(source, file, "ort:cpu", 1)
    assert [(e.kind, e.cache) for e in found] == [c for c in text.CASES if c[1] != "float32"]
    assert len(ours) == len(theirs) > 1
    for mine, his in zip(ours, theirs, strict=True):
        his = his[0, -32:].double().numpy()
        for case, outputs in zip(text.CASES, mine, strict=True):
            assert relative_rms(outputs[0][0], his) < (1e-5 if case[1] == "float32" else 0.05)
    for error in found:
        assert all(0 < layer < 0.05 for layer in error.layers)
        assert error.layers[error.worst] == max(error.layers)
        assert error.mean == pytest.approx(np.mean(error.layers))


def test_targets_store_what_their_rows_are():
    assert TARGETS == {"ort:cpu": ("ort-cpu", "uint8")}
