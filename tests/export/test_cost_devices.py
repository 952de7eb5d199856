"""The table of devices, and files of a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mla_export.devices import CLASSES, FIGURES, choose, table
from mla_runtime.errors import ConfigError

OWN: dict[str, Any] = {
    "name": "my-box",
    "title": "My box",
    "class": "cpu",
    "memory_gib": 32,
    "reserved_gib": 4,
    "bandwidth_gb_s": 50,
    "float_tflops": 0.4,
    "int8_tops": None,
}


def file(tmp_path: Path, *devices: Any, **more: Any) -> str:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"devices": list(devices), **more}))
    return str(path)


def test_the_table_is_in_order_and_every_figure_has_a_source():
    devices = table()
    assert [CLASSES.index(device.kind) for device in devices] == sorted(
        CLASSES.index(device.kind) for device in devices
    )
    for device in devices:
        assert set(device.sources) == set(FIGURES)
        assert all(source["from"] for source in device.sources.values())
        assert 0 < device.usable < device.memory
        assert (device.int8_rate is None) is (device.sources["int8_tops"]["seen"] == "absent")
        assert device.sources["reserved_gib"]["seen"] == "assumed"
        assert device.floats == "float16"
        if device.int8_rate is not None:  # dense rates of one generation, none of them of sparsity
            assert 1.9 < device.int8_rate / device.float_rate < 4.1


def test_the_table_has_what_was_promised():
    names = {device.name for device in table()}
    assert names >= {"orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb", "thor-t5000", "rtx-3060-12gb"}
    assert names >= {"rtx-4090", "rtx-5090", "h200"}
    (nano,) = choose(["orin-nano-8gb"])
    assert (nano.memory, nano.bandwidth, nano.int8_rate) == (8 * 2**30, 68e9, 20e12)


def test_devices_are_chosen_by_name_all_and_file(tmp_path: Path):
    assert [d.name for d in choose(["rtx-4090", "h200", "rtx-4090"])] == ["rtx-4090", "h200"]
    assert choose(["all"]) == table()
    (own,) = choose([file(tmp_path, OWN)])
    assert (own.name, own.memory, own.usable, own.float_rate) == ("my-box", 32 * 2**30, 28 * 2**30, 0.4e12)
    assert own.int8_rate is None
    assert own.floats == "float32"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rtx-409", r"near it: rtx-4090, "),
        ("orin", r"near it: orin-nx-8gb"),
        ("abacus", r"known: orin-nano-8gb, .*, h200"),
        ("", r"known: orin-nano-8gb"),
    ],
)
def test_an_unknown_name_is_told_what_is_near(name: str, hint: str):
    with pytest.raises(ConfigError, match=f"device '{name}' is not in the table .*{hint}"):
        choose(["h200", name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_gib": 0}, r"devices\[0\]\.memory_gib: 0 is not a number of 1e-06 to 1e9"),
        ({"bandwidth_gb_s": "50"}, r"bandwidth_gb_s: '50' is not a number of 1e-06 to 1e9"),
        ({"float_tflops": True}, r"float_tflops: True is not"),
        ({"int8_tops": -1}, r"int8_tops: -1 is not"),
        ({"reserved_gib": 32}, r"reserved_gib: 32 is not less than memory_gib 32"),
        ({"class": "toaster"}, r"class: 'toaster' is not one of cpu, jetson"),
        ({"name": "My box"}, r"name: 'My box' is not a name like"),
        ({"name": "all"}, r"name: 'all' is not a name like"),
        ({"title": ""}, r"title: '' is not"),
        ({"price": 5}, r"unknown key 'price'"),
        ({"sources": {"price": {}}}, r"sources: is not an object of figures"),
        ({"sources": {"memory_gib": {"seen": "dreamt", "from": "x"}}}, r"sources\.memory_gib: is not"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        choose([file(tmp_path, {**OWN, **change})])


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    for content in ({}, {"devices": []}, {"devices": {}}, {"devices": [OWN], "more": 1}):
        (tmp_path / "own.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r'own\.json: is not {"devices"'):
            choose([str(tmp_path / "own.json")])
    with pytest.raises(ConfigError, match="'my-box' is there twice"):
        choose([file(tmp_path, OWN, OWN)])
    with pytest.raises(ConfigError, match=r"devices\[1\]: is not an object"):
        choose([file(tmp_path, OWN, 3)])
    with pytest.raises(ConfigError, match="'float_tflops' is missing"):
        choose([file(tmp_path, {key: value for key, value in OWN.items() if key != "float_tflops"})])
    with pytest.raises(ConfigError, match="cannot be read"):
        choose([str(tmp_path / "nowhere.json")])
