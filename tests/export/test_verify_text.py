"""`verify --text`: what it prints, its exit codes, and the gates that it holds on the trained sample."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

import mla_export
from mla_export.checkpoint import Checkpoint
from mla_export.cli import main
from mla_export.export import export
from mla_export.quality import Quality, Teacher, measure, text_windows
from mla_export.reference import Reference
from mla_graphs.lowering.portable import int8
from mla_runtime import Bundle
from mla_runtime.errors import InputError
from tests.quick_trace import quick_tracing

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "tiny-mla"
TEXT = SAMPLE / "held_out.txt"
TOKENS = 5000  # benchmarks/quality_table.py holds the gates on 50,000


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """The sample with INT8 latent rows."""
    with quick_tracing():
        return export(SAMPLE, tmp_path_factory.mktemp("sample") / "int8-rows", cache="int8")


@pytest.fixture(scope="module")
def teacher(rows) -> Teacher:
    bundle = Bundle.open(rows)
    reference = Reference(Checkpoint.open(SAMPLE), bundle.model.max_context)
    return Teacher.of(reference, text_windows(bundle, TEXT, TOKENS))


def quality(path: Path, teacher: Teacher) -> Quality:
    return measure(Bundle.open(path), teacher, threads=1)


def called(*arguments: object) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["verify", *map(str, arguments), "--quiet"])
    return code, printed.getvalue()


def test_int8_rows_keep_the_gates(rows, teacher):
    found = quality(rows, teacher)
    assert found.pinned is not None
    for figures in (found.free[0], found.pinned[0]):
        assert 1e-7 < figures.kl_mean <= 1e-4
        assert figures.same_top >= 0.995
    # one token in a hundred is routed otherwise, which is what the free 99 % would measure
    assert found.pinned[0].kl_99 <= 1.5e-4
    assert found.rerouted is not None
    assert 0 < found.rerouted < 0.02


def test_rows_of_six_bits_do_not(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(int8, "LARGEST_CODE", 31.0)
    with quick_tracing():
        found = quality(export(SAMPLE, tmp_path / "b", cache="int8"), teacher)
    assert found.pinned is not None
    assert found.free[0].kl_mean > 1e-4
    assert found.pinned[0].kl_99 > 1.5e-4


def test_int8_weights_keep_the_gate_where_routing_is_pinned(tmp_path, teacher):
    """Free routing is past 2e-4 on ort-cpu, which rounds activations too: docs/quality.md has the figures."""
    with quick_tracing():
        found = quality(export(SAMPLE, tmp_path / "b", target="ort-cpu", weights="int8"), teacher)
    assert found.pinned is not None
    assert 1e-6 < found.pinned[0].kl_mean <= 2e-4
    assert found.pinned[0].kl_mean < found.free[0].kl_mean


def test_the_tables_are_printed_and_a_limit_decides(rows):
    reading = ("--checkpoint", SAMPLE, "--steps", 2, "--text", TEXT, "--text-tokens", 300)
    code, text = called(rows, *reading)
    assert code == 0
    assert "300 tokens of text in windows of 300, beside the checkpoint in fp32\nrouting free" in plain(text)
    assert "routing pinned to the checkpoint's choices" in text
    assert "routed otherwise than the checkpoint, in any layer: " in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith((" all", " 256-"))] == [
        ["all", "300"],
        ["256-299", "44"],
        ["all", "300"],
        ["256-299", "44"],
    ]
    code, text = called(rows, *reading, "--max-kl", "1e-9", "--json")
    assert code == 1
    found = json.loads(text)
    assert not found["passed"]
    assert found["checks"][-1]["name"] == "mean KL on the text"
    assert found["checks"][-1]["verdict"] == "fail"
    assert [row["tokens"] for row in found["quality"]["free"]] == [300, 16, 48, 192, 44]
    code, text = called(rows, *reading, "--max-kl", "1", "--json")
    assert code == 0
    assert json.loads(text)["checks"][-1]["verdict"] == "pass"


def plain(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def test_a_text_is_read_beside_a_checkpoint(rows):
    with pytest.raises(InputError, match="give its folder too"):
        mla_export.verify(rows, text=TEXT)
    for alone in ({"text_tokens": 3}, {"max_kl": 1.0}):
        with pytest.raises(InputError, match=r"give it too \(--text FILE\)"):
            mla_export.verify(rows, SAMPLE, **alone)
    assert called(rows, "--text", TEXT)[0] == 2


def test_a_text_that_cannot_be_read_is_refused(rows, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("")
    for name, said in (("binary", "UTF-8"), ("nothing", "UTF-8"), ("empty", "none to foretell")):
        with pytest.raises(InputError, match=said):
            mla_export.verify(rows, SAMPLE, text=tmp_path / name)


def test_what_reading_a_text_needs_is_named_first(rows, monkeypatch, capsys):
    from mla_export import extras

    monkeypatch.setattr(extras, "is_there", lambda package: package != "tokenizers")
    assert main(["verify", str(rows), "--checkpoint", str(SAMPLE), "--text", str(TEXT), "--quiet"]) == 3
    assert "tokenizers is not installed; try: pip install 'mla-export[text]'" in capsys.readouterr().err
