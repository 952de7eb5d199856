"""Results from files: strangers' JSON is taken as it is meant, or refused with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mla_export.page.results import Results, read_results, result
from mla_runtime.errors import InputError
from tests.export.agreements import agreement, everything, failed, side
from tests.export.benchmarks import bench_json, inspect_json


def saved(tmp_path: Path, name: str, value: Any) -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(value))
    return path


def changed(value: Any, *keys: Any, to: Any) -> Any:
    """A copy of a JSON value with what stands at `keys` changed, or taken out with `to` = ...."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in keys[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return copy


def test_files_of_each_kind_are_read(tmp_path: Path):
    found = read_results(
        [
            saved(tmp_path, "c.json", everything().to_json()),
            saved(tmp_path, "b.json", bench_json()),
            saved(tmp_path, "i.json", inspect_json()),
        ]
    )
    assert found.comparisons == (everything(),)
    assert [one.name for one in found.benchmarks] == ["fp32 on ort:cpu"]
    assert [one.geometry.max_context for one in found.models] == [163_840]


def test_what_two_devices_measured_is_told_apart_by_its_file(tmp_path: Path):
    files = [saved(tmp_path, f"{device}.json", bench_json()) for device in ("orin", "desk")]
    both = read_results([*files, saved(tmp_path, "other.json", bench_json("out/int4"))])
    assert [one.name for one in both.benchmarks] == [
        "fp32 on ort:cpu (orin)",
        "fp32 on ort:cpu (desk)",
        "int4 on ort:cpu",
    ]


def test_null_is_a_number_that_was_not_finite():
    one = changed(agreement().to_json(), "sides", 0, "steps", 0, "rms", to=None)
    assert math.isnan(result(one, "f").sides[0].steps[0].rms)


COMPARED = everything().to_json()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "f: is no result of compare, bench or inspect; save one of them with --json"),
        (changed(COMPARED, "format", to=2), "f: a comparison of format 2, and this version reads 1"),
        (changed(COMPARED, "format", to=...), "f: a comparison of format None"),
        (changed(COMPARED, "steps", to=...), "f: 'steps' is missing"),
        (changed(COMPARED, "steps", to="64"), "f.steps: '64' is not a whole number"),
        (changed(COMPARED, "steps", to=True), "f.steps: True is not a whole number"),
        (changed(COMPARED, "steps", to=10**30), "f.steps: 1"),
        (changed(COMPARED, "sides", to={}), "f.sides: {} is not a list"),
        (changed(COMPARED, "sides", 2, to=[]), r"f.sides\[2\]: \[\] is not an object"),
        (
            changed(COMPARED, "sides", 1, "verdict", to="fine"),
            "f.sides\\[1\\].verdict: 'fine' is not one of pass,",
        ),
        (changed(COMPARED, "sides", 1, "kl", 4, to="<b>"), "f.sides\\[1\\].kl\\[4\\]: '<b>' is not a number"),
        (changed(COMPARED, "sides", 1, "name", to=5), "f.sides\\[1\\].name: 5 is not a text"),
        (changed(bench_json(), "measurements", 0, "step_seconds", to=0), "f: has 0.0 where a number above 0"),
        (
            changed(bench_json(), "measurements", 0, "depth", to=...),
            r"f.measurements\[0\]: 'depth' is missing",
        ),
        (changed(inspect_json(), "geometry", "max_context", to=0), "f: has 0 where a number above 0"),
        (
            changed(inspect_json(), "cache_bytes_per_token", "latent", to=...),
            "cache_bytes_per_token: 'latent' is",
        ),
    ],
)
def test_what_is_wrong_is_one_error_with_its_place(value: Any, message: str):
    with pytest.raises(InputError, match=message):
        result(value, "f")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"a": NaN}'])
def test_what_is_no_json_object_is_an_error(content: bytes, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json"):
        read_results([tmp_path / "x.json"])
    with pytest.raises(InputError, match="cannot be read"):
        read_results([tmp_path / "gone.json"])


@pytest.mark.parametrize(
    ("sides", "verdict"),
    [([failed(), side("a", 1e-6)], "fail"), ([side("a", 1e-6)], "pass"), ([], "pass")],
)
def test_the_worst_verdict_is_that_of_all(sides, verdict: str):
    found = Results(comparisons=(agreement(), agreement(*sides)))
    assert (found.verdict, found.passed) == (verdict, verdict != "fail")
    assert (Results().verdict, Results().passed) == ("", True)
