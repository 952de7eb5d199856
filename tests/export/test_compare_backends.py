"""Bundles on another backend beside themselves on the CPU: what a card makes of the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mla_export.compare.agreement import compare
from mla_runtime.errors import BackendError, EngineError, InputError, VerificationError
from tests.export import fake_card
from tests.runtime.handmade import make_bundle, manifest

BACKENDS = ["ort:cpu", fake_card.NAME]


def bundle_in(folder: Path, **precision: object) -> Path:
    """A bundle that says it is in these formats."""
    return make_bundle(folder, precision={**manifest()["precision"], **precision})


@pytest.fixture
def half(tmp_path: Path) -> Path:
    return bundle_in(tmp_path / "half", compute="float16", weights="float16", head="float16")


@pytest.mark.parametrize(("off", "verdict"), [(0.0, "pass"), (0.01, "pass"), (0.05, "fail")])
def test_a_bundle_in_any_precision_is_held_beside_itself(half, monkeypatch, off, verdict):
    fake_card.put_in(monkeypatch, off)
    found = compare([half], backends=BACKENDS, beside_cpu=True, steps=8)
    reference, card = found.sides
    assert (reference.verdict, reference.name) == ("reference", "half on ort:cpu")
    assert (card.verdict, card.name) == (verdict, "half on tensorrt")
    assert "the gate for float16" in card.gate.words
    with pytest.raises(InputError, match="none of these bundles is in fp32"):
        compare([half], backends=BACKENDS, steps=8)


def test_weights_that_are_the_same_numbers_are_no_licence(tmp_path, monkeypatch):
    fake_card.put_in(monkeypatch)
    coarse = bundle_in(tmp_path / "coarse", weights="int4", group=32, method="searched", head="int8")
    other = bundle_in(tmp_path / "other", weights="int8", group=32, method="searched", head="int8")
    found = compare([coarse, other], backends=BACKENDS, beside_cpu=True, steps=8)
    gates = {side.name: side.gate.words for side in found.sides if side.gate is not None}
    assert "the gate for float32" in gates["coarse on tensorrt"]
    assert "the gate for int8" in gates["other on tensorrt"]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (BackendError("no GPU"), "absent"),
        (EngineError("no engines"), "absent"),
        (VerificationError("the canary fails"), "fail"),
    ],
)
def test_what_does_not_load_is_told_apart_from_what_is_wrong(half, tmp_path, monkeypatch, error, verdict):
    fake_card.put_in(monkeypatch, error=error)
    other = make_bundle(tmp_path / "other", generator={"mla-export": "0.0.1"})
    found = compare([half, other], backends=BACKENDS, beside_cpu=True, steps=8)
    cards = [side for side in found.sides if side.backend == fake_card.NAME]
    assert [(side.verdict, side.reason) for side in cards] == [(verdict, str(error))] * 2
    assert found.passed == (verdict == "absent")
