"""`cost` on configurations, checkpoints and bundles: tables, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from mla_export.cli import main
from mla_export.devices import table
from mla_export.export import export
from mla_runtime.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.export.test_cost_devices import OWN, file
from tests.quick_trace import quick_tracing

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
V2_LITE = str(CONFIGS / "DeepSeek-V2-Lite.json")
MINICPM3 = str(CONFIGS / "MiniCPM3-4B.json")

BUNDLES: dict[str, dict[str, Any]] = {
    "portable": {},
    "expanded": {"absorb": "expanded", "dtype": "fp16"},
    "int4": {
        "target": "ort-cpu",
        "weights": "int4",
        "cache": "int8",
        "cache_rope": "int8",
        "absorb": "merged",
    },
    "int8": {"target": "ort-cpu", "weights": "int8", "group": 128, "head": "int4", "cache": "int8"},
}


@pytest.fixture(autouse=True)
def as_wide_as_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "deepseek_v3")


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundle") / request.param
    with quick_tracing():
        export(checkpoint, out, chunk=32, **BUNDLES[request.param])
    return out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["cost", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_bundle_is_counted_as_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]):
    found = as_json(capsys, str(bundle), "--device", "h200", "--context", "128")
    own = found["devices"][0]["own"]
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    assert own["formats"]["absorb"] == manifest.absorb
    assert own["formats"]["floats"] == manifest.precision.compute
    assert own["cache_token"] == sum(tensor.row_bytes for tensor in opened.cache)
    lengths: dict[str, int] = {}  # of what lies in the file of weights, by its place
    for phase in ("step", "prompt"):
        graph = onnx.load(opened.paths[opened.graph(phase).file], load_external_data=False).graph
        for tensor in graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                lengths[place["offset"]] = int(place["length"])
    assert own["weights"] == sum(lengths.values())
    assert found["request"]["chunk"] == 32


def test_a_bundle_is_marked_in_the_tables(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cost", str(bundle), "--device", "rtx-4090", "--context", "128"]) == 0
    shown = capsys.readouterr().out
    precision = Bundle.open(bundle).manifest.precision
    floats = {"float32": "fp32", "float16": "fp16"}
    assert f": {floats.get(precision.weights, precision.weights)}/" in shown
    assert shown.count("this bundle") == 3
    assert main(["cost", str(bundle)]) == 0
    assert "This bundle (" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_published_model_on_every_device(path: Path, capsys: pytest.CaptureFixture[str]):
    found = as_json(capsys, str(path))  # json of the standard library: NaN and infinity would have raised
    assert [entry["device"]["name"] for entry in found["devices"]] == [device.name for device in table()]
    for entry in found["devices"]:
        assert len(entry["estimates"]) == 21
        for estimate in entry["estimates"]:
            for point in estimate["points"]:
                assert point["fits"] is (point["context"] <= estimate["longest"])
                assert point["step_seconds"] > 0 < point["prompt_seconds"]
    assert main(["cost", str(path)]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[1:])) <= 100


def test_a_checkpoint_is_read_like_its_configuration(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    found = as_json(capsys, str(checkpoint), "--device", "h200")
    same = as_json(capsys, str(checkpoint / "config.json"), "--device", "h200")
    assert (found["kind"], same["kind"]) == ("checkpoint", "config")
    assert found["devices"] == same["devices"]


def test_tables_of_one_device(capsys: pytest.CaptureFixture[str]):
    assert main(["cost", V2_LITE, "--device", "rtx-4090", "--context", "4k,32k"]) == 0
    shown = capsys.readouterr().out
    assert "GeForce RTX 4090: 23.0 GiB of 24.0 GiB usable, 1008 GB/s" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "fp16 30.4 KiB 121.5 MiB 972.0 MiB" in lines
    assert "int8 17.0 KiB 67.9 MiB 543.4 MiB" in lines
    assert "weights/cache step 4k step 32k prompt 4k prompt 32k longest context" in lines
    (row,) = (line for line in lines if line.startswith("fp16/fp16"))
    assert row == "fp16/fp16 – – – – does not fit"
    assert (
        "A factored step is shorter than an expanded one: always (fp16), from 216 tokens (int8, int4)."
        in lines
    )


def test_many_devices_are_a_line_each(capsys: pytest.CaptureFixture[str]):
    assert main(["cost", V2_LITE, "--context", "32k"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {words[0]: words for words in shown if words and words[0] in {d.name for d in table()}}
    assert list(rows) == [device.name for device in table()]
    assert rows["orin-nano-8gb"][-1] == "–"
    assert rows["h200"][-2] == "fp16/fp16"


def test_contexts_are_as_far_as_the_model_goes(capsys: pytest.CaptureFixture[str]):
    device = ("--device", "h200")
    assert as_json(capsys, V2_LITE, *device)["request"]["contexts"] == [4096, 32_768, 131_072]
    assert as_json(capsys, MINICPM3, *device)["request"]["contexts"] == [4096, 32_768]
    found = as_json(capsys, MINICPM3, *device, "--context", "1K,500", "--batch", "3", "--chunk", "64")
    assert found["request"] == {"contexts": [500, 1024], "batch": 3, "chunk": 64}
    point = found["devices"][0]["estimates"][0]["points"][1]
    assert point["cache"] == 3 * 1024 * 62 * (256 + 32) * 2
    assert point["step_rate"] == pytest.approx(3 / point["step_seconds"])


def test_a_device_of_ones_own_computes_in_its_floats(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cost", MINICPM3, "--device", f"{file(tmp_path, OWN)},rtx-4090"]) == 0
    shown = capsys.readouterr().out
    assert "My box: 28.0 GiB of 32.0 GiB usable, 50 GB/s" in shown
    assert " fp32/int8 " in shown
    assert " fp16/int8 " in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", "64k"], "--context 65536: {} has positions for 32,768 tokens; give at most that"),
        (["--device", "rtx-409"], "device 'rtx-409' is not in the table (near it: rtx-4090"),
        (["--device", "h200,"], "device '' is not in the table"),
    ],
)
def test_what_cannot_be_is_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["cost", MINICPM3, *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"mla-export: {message.format(MINICPM3)}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--context", text] for text in ("4x", "0", "-1", "4k,", "", "k")] + [["--batch", "0"]]
)
def test_nonsense_is_refused_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["cost", MINICPM3, *words])
    assert ended.value.code == 2
    assert f"argument {words[0]}: " in capsys.readouterr().err
