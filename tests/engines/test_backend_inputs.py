"""Every tensor of a real network has an address in the TensorRT backend, and the right weights are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_export.export import export
from mla_runtime.backends.device_weights import DeviceWeights, weight_bytes
from mla_runtime.bundle import Bundle
from mla_runtime.engines import log, network
from mla_runtime.engines.flavour import RTX
from mla_runtime.manifest import PHASES
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing
from tests.runtime.fake_device import FakeDevice

FORMS = {
    "fp16": {"dtype": "fp16"},
    "int8 rows": {"dtype": "fp16", "cache": "int8"},
    "int8 weights": {"dtype": "fp16", "weights": "int8"},
}


@pytest.fixture(scope="module", params=FORMS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("tensorrt_rtx", reason="not installed: pip install mla-export[rtx]")
    folder = tmp_path_factory.mktemp("inputs")
    source = make_checkpoint(folder / "checkpoint", "deepseek_v3", num_hidden_layers=2)
    with quick_tracing():
        path = export(source, folder / "bundle", max_context=64, chunk=16, **FORMS[request.param])
    return Bundle.open(path)


def test_every_tensor_of_the_networks_has_an_address(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "SMALL", 64)  # these weights are small, and shall be outside all the same
    library = RTX.load()
    builder = library.trt.Builder(log.logger(library.trt))
    outside: dict[Any, None] = {}
    for phase in PHASES:
        parsed = network.parse(bundle, phase, library, builder)
        outside |= dict.fromkeys(parsed.outside)
        inputs = {parsed.network.get_input(place).name for place in range(parsed.network.num_inputs)}
        outputs = {parsed.network.get_output(place).name for place in range(parsed.network.num_outputs)}
        given = {tensor.name for tensor in bundle.manifest.inputs} | {t.past for t in bundle.cache}
        assert inputs == given | {weight.name for weight in parsed.outside}
        assert outputs == {"logits"} | {t.present for t in bundle.cache}
    assert len(outside) > 5
    device = FakeDevice()
    weights = DeviceWeights(device, bundle, tuple(outside))  # type: ignore[arg-type]
    for weight in outside:
        data = np.memmap(bundle.paths[weight.file], dtype=np.uint8, mode="r")
        want = data[weight.offset : weight.offset + weight.nbytes]
        assert np.array_equal(device.view(weights.addresses[weight.name], weight.nbytes), want)
    assert weight_bytes(tuple(outside)) <= weights.nbytes <= weight_bytes(tuple(outside)) + 256 * len(outside)
    weights.close()
    assert not device.blocks


def test_weights_longer_than_a_piece_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mla_runtime.backends import device_weights
    from tests.runtime.fake_tensorrt import outside_of
    from tests.runtime.handmade import make_bundle

    monkeypatch.setattr(device_weights, "PIECE", 1000)
    made = Bundle.open(make_bundle(tmp_path / "bundle"))
    device, outside = FakeDevice(), outside_of(made)
    weights = DeviceWeights(device, made, [*outside, outside[0]])  # type: ignore[arg-type]
    data = made.paths["weights.data"].read_bytes()
    for weight in outside:
        found = device.view(weights.addresses[weight.name], weight.nbytes).tobytes()
        assert found == data[weight.offset : weight.offset + weight.nbytes]
    assert device.pinned_bytes == 0
