"""Weights of a graph come from listed files, wherever in the graph they are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from mla_runtime.bundle import Bundle
from mla_runtime.errors import BundleError
from mla_runtime.external import check_external
from tests.runtime.broken import content, refused
from tests.runtime.handmade import write_manifest


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "unlisted.bin"])
def test_a_graph_takes_weights_from_listed_files_only(folder: Path, tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    proto = onnx.load(folder / "step.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    (folder / "step.onnx").write_bytes(proto.SerializeToString())
    write_manifest(folder, {k: v for k, v in content(folder).items() if k != "sha256"})
    refused(folder, f"{folder / 'step.onnx'}: a tensor lies in {location!r}, which bundle.json does not list")


@pytest.mark.parametrize("key", ["offset", "length"])
def test_a_graph_reads_no_further_than_its_weights(folder: Path, key: str) -> None:
    proto = onnx.load(folder / "step.onnx", load_external_data=False)
    size = (folder / "weights.data").stat().st_size
    entry = next(e for e in proto.graph.initializer[-1].external_data if e.key == key)
    entry.value = str(int(entry.value) + 1)
    (folder / "step.onnx").write_bytes(proto.SerializeToString())
    write_manifest(folder, {k: v for k, v in content(folder).items() if k != "sha256"})
    refused(folder, f"to {size + 1} of 'weights.data', which has {size}; get the bundle again")


def test_weights_hidden_in_attributes_and_subgraphs_are_found(folder: Path) -> None:
    def elsewhere() -> onnx.TensorProto:
        tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../secret")
        return tensor

    files = Bundle.open(folder).manifest.files
    makers: list[Callable[[onnx.GraphProto], Any]] = [
        lambda g: g.node[0].attribute.add(name="t", t=elsewhere()),
        lambda g: g.node[0].attribute.add(name="t", tensors=[elsewhere()]),
        lambda g: g.node[0].attribute.add(name="g", g=onnx.GraphProto(initializer=[elsewhere()])),
        lambda g: g.node[0].attribute.add(name="g", graphs=[onnx.GraphProto(initializer=[elsewhere()])]),
        lambda g: g.sparse_initializer.add(values=elsewhere()),
        lambda g: g.sparse_initializer.add(indices=elsewhere()),
    ]
    whole = (folder / "step.onnx").read_bytes()
    for make in makers:
        proto = onnx.load_from_string(whole)
        make(proto.graph)
        (folder / "step.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(BundleError, match=r"a tensor lies in '../secret'"):
            check_external(folder / "step.onnx", files)
    proto = onnx.load(folder / "prompt.onnx", load_external_data=False)
    function = proto.functions.add(name="f", domain="d")
    function.node.add(op_type="Constant").attribute.add(name="value", t=elsewhere())
    (folder / "prompt.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(BundleError, match=r"a tensor lies in '../secret'"):
        check_external(folder / "prompt.onnx", files)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x3a\x7f\x01", b"\x3b", b"\x3a", b"\x08"])
def test_what_is_not_onnx(folder: Path, data: bytes) -> None:
    (folder / "step.onnx").write_bytes(data)
    write_manifest(folder, {k: v for k, v in content(folder).items() if k != "sha256"})
    refused(folder, f"{folder / 'step.onnx'}: not an ONNX file")
