"""Broken and hostile manifests: each entry is refused by name, with what it should have been."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.broken import content, refused, save
from tests.runtime.handmade import V


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"format": 1', "not valid JSON"),
        (b"[1]", "holds a list where an object belongs"),
        (b'{"format": NaN}', "NaN is not a JSON number"),
        (b'{"format": 1, "format": 1}', "the key 'format' is given twice"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b" " * 16_000_001, "larger than the 16000000 bytes that it may have"),
        (rb'{"format": 1, "files": {"\ud800": 1}}', "not valid JSON ('utf-8' codec can't encode"),
        (rb'{"format": "\uDfff"}', "not valid JSON ('utf-8' codec can't encode"),
        (b'{"format": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "nan", "twice", "bytes", "nested", "huge", "half", "half value", "digits"],
)
def test_json(folder: Path, text: bytes, message: str) -> None:
    (folder / "bundle.json").write_bytes(text)
    refused(folder, message)


def canary(
    prompt: list[int], steps: list[int], entry: object = ((1, 1.0),), *, entries: int | None = None
) -> dict[str, object]:
    """A canary whose expected logits are all `entry`."""
    count = 1 + len(steps) if entries is None else entries
    return {"prompt_ids": prompt, "step_ids": steps, "top": [entry] * count}


BROKEN: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("model", "layers"), 0, "model.layers: 0 is not an integer in [1, 100000]"),
    (("model", "vocab_size"), -1, "model.vocab_size: -1 is not an integer in [1, 2147483648]"),
    (("model", "vocab_size"), True, "model.vocab_size: True is not an integer"),
    (("model", "max_context"), 1.5, "model.max_context: 1.5 is not an integer"),
    (("model", "name"), "", "model.name: '' is not a string that is not empty"),
    (("opset",), "20", "opset: '20' is not an integer"),
    (("absorb",), "half", "absorb: 'half' is not one of factored, merged, expanded"),
    (("graphs", "prompt", "chunk"), 0, "graphs.prompt.chunk: 0 is not an integer in [1, 1048576]"),
    (("graphs", "step", "file"), "other.onnx", "'other.onnx' is used but not listed in files"),
    (("graphs", "step", "chunk"), 5, "graphs.step: unknown key 'chunk'"),
    (("inputs", 0, "dtype"), "int32", "inputs[0].dtype: 'int32' is not one of int64, float32, float16"),
    (("inputs",), {}, "inputs: {} is not a list"),
    (
        ("inputs", 0, "shape"),
        [1] * 9,
        "[1, 1, 1, 1, 1, 1, 1, 1, 1] is not a shape of at most 8",
    ),
    (("outputs", 0, "shape", 1), 0, "outputs[0].shape[1]: 0 is not an integer in [1, 2147483648]"),
    (("cache",), [], "cache: [] is not a list of 1 to 1000000 cache tensors"),
    (
        ("cache", 3, "dtype"),
        "float64",
        "cache[3].dtype: 'float64' is not one of float32, float16, int8, uint8;",
    ),
    (("cache", 3, "dtype"), "int4", "cache[3].dtype: 'int4' is not one of float32, float16, int8, uint8;"),
    (("precision",), {}, "precision: 'activations' is missing"),
    (("precision",), {"compute": "float32"}, "precision: 'activations' is missing"),
    (("precision", "compute"), "int4", "precision.compute: 'int4' is not one of float32, float16;"),
    (("precision", "method"), "nearest", "precision.method: 'nearest' is not one of searched, calibrated;"),
    (("precision", "activations"), "int4", "precision.activations: 'int4' is not one of float32, float16,"),
    (("precision", "other"), "float32", "precision: unknown key 'other'"),
    (("cache", 1, "kind"), "replace", "cache[1].kind: 'replace' is not one of append"),
    (("cache", 1, "layer"), 2, "cache[1].layer: 2 is not an integer in [0, 1]"),
    (("cache", 1, "row"), ["C"], "cache[1].row: ['C'] is not a list of at most 6 integers"),
    (("cache", 1, "row"), [1] * 7, "row: [1, 1, 1, 1, 1, 1, 1] is not a list of at most 6"),
    (("cache", 1, "past"), "past_0_latent", "cache: the name 'past_0_latent' is given twice"),
    (("text", "stop_ids"), [V], f"text.stop_ids[0]: {V} is not an integer in [0, {V - 1}]"),
    (("text", "add_bos"), True, "text.add_bos: True is not false, which it must be without a bos_id"),
    (("text", "add_bos"), 1, "text.add_bos: 1 is not true or false"),
    (("text", "tokenizer"), "tokenizer.json", "'tokenizer.json' is used but not listed in files"),
    (("text", "tokens"), {"bos_token": 5}, "text.tokens.bos_token: 5 is not a string that is not empty"),
    (("canary",), {"prompt_ids": [1], "top": [[[1, 1.0]]]}, "canary: 'step_ids' is missing"),
    (("canary",), canary([], []), "is not a canary with prompt ids"),
    (("canary",), canary([1], [V]), f"canary.step_ids[0]: {V} is not an integer"),
    (("canary",), canary([1], [1], entries=1), "with expected logits after the prompt and after each step"),
    (("canary",), canary([1], [], entry=[]), "top[0]: [] is not a list of at least one pair"),
    (("canary",), canary([1], [], entry=[[1]]), "top[0][0]: [1] is not a pair of id and logit"),
    (("canary",), canary([1], [], entry=[[V, 1.0]]), f"canary.top[0][0][0]: {V} is not an integer"),
    (("canary",), canary([1], [], entry=[[1, "x"]]), "top[0][0][1]: 'x' is not a finite number"),
    (("canary",), canary([1] * 512, [1]), "a canary that fits in max_context = 512"),
    (("files", "step.onnx", "sha256"), "A" * 64, "is not 64 lower-case hexadecimal digits"),
    (("files", "step.onnx", "size"), -1, "files.step.onnx.size: -1 is not an integer"),
    (("generator",), {"mla-export": 1}, "generator.mla-export: 1 is not a string"),
    (("calibration",), {"sha256": "0" * 64}, "calibration: 'tokens' is missing"),
    (("calibration",), {"sha256": "0", "tokens": 1}, "calibration.sha256: '0' is not 64 lower-case"),
    (("calibration",), {"sha256": "0" * 64, "tokens": 0}, "calibration.tokens: 0 is not an integer in [1,"),
    (("extra",), 1, "unknown key 'extra'"),
]


@pytest.mark.parametrize(("place", "value", "message"), BROKEN, ids=[f"{b[0]}={b[1]!r}"[:60] for b in BROKEN])
def test_manifest_values(folder: Path, place: tuple[str | int, ...], value: Any, message: str) -> None:
    raw = content(folder)
    target: Any = raw
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    save(folder, raw)
    refused(folder, message)


@pytest.mark.parametrize(
    "key", ["model", "graphs", "cache", "text", "canary", "files", "source", "calibration", "precision"]
)
def test_manifest_keys(folder: Path, key: str) -> None:
    raw = content(folder)
    del raw[key]
    save(folder, raw)
    refused(folder, f"{folder / 'bundle.json'}: {key!r} is missing; export the bundle again")


def test_a_manifest_without_its_digest(folder: Path) -> None:
    raw = content(folder)
    del raw["sha256"]
    (folder / "bundle.json").write_text(json.dumps(raw))
    refused(folder, "'sha256' is missing")


def test_a_name_given_twice_is_found_in_one_pass(folder: Path) -> None:
    raw = content(folder)
    one = raw["cache"][0]
    raw["cache"] = [one | {"past": f"past_{i}", "present": f"present_{i}"} for i in range(40_000)]
    raw["cache"][-1]["past"] = "past_39998"
    save(folder, raw)
    start = time.perf_counter()
    refused(folder, "cache: the name 'past_39998' is given twice")
    # about two seconds; counting every name takes ninety
    assert time.perf_counter() - start < 30
