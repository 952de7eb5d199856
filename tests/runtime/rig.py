"""One bundle on ONNX Runtime and on the TensorRT backend over a fake device, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mla_runtime
from mla_export.export import export
from mla_runtime.backends.tensorrt import TensorrtBackend
from mla_runtime.bundle import Bundle
from mla_runtime.engines.record import Limits
from mla_runtime.model import Model
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing
from tests.runtime import fake_tensorrt
from tests.runtime.fake_device import FakeDevice
from tests.runtime.handmade import make_bundle, manifest

# The same sums over more masked rows: the handmade model's logits are about 1, others' about 10.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
# A code of an INT8 row may round the other way, which is at most a 127th of the row's largest number.
CLOSE_INT8 = {"atol": 2e-2, "rtol": 0}
LIMITS = Limits(4, 512, 16)


@dataclass
class Rig:
    """A bundle on ONNX Runtime and on a fake device."""

    ort: Model
    model: Model
    device: FakeDevice
    trt: Any

    def steps(self, session: mla_runtime.Session) -> Any:
        return session._buffers.steps  # type: ignore[attr-defined]


def make_rig(bundle: Path, folder: Path, limits: Limits = LIMITS, device: Any = None, **options: Any) -> Rig:
    opened = Bundle.open(bundle)
    device = FakeDevice() if device is None else device
    library = fake_tensorrt.library(device, options.get("flavour", "tensorrt-rtx"))
    built = fake_tensorrt.build(opened, folder, limits, **options)
    backend = TensorrtBackend(opened, library, built, folder, device)  # type: ignore[arg-type]
    return Rig(mla_runtime.open(bundle, threads=1), Model(opened, backend), device, library.trt)


def same_logits(found: np.ndarray, want: np.ndarray, name: str = "float") -> None:
    np.testing.assert_allclose(found, want, **(CLOSE_INT8 if name.startswith("int8") else CLOSE))


def same_rows(one: mla_runtime.Session, other: mla_runtime.Session, name: str = "float") -> None:
    close = CLOSE_INT8 if name.startswith("int8") else CLOSE
    assert one.lengths == other.lengths
    for sequence in range(one.batch):
        want, found = one.rows(sequence), other.rows(sequence)
        assert want.keys() == found.keys()
        for name, rows in want.items():
            assert rows.dtype == found[name].dtype
            if rows.dtype.itemsize == 1:  # a code may round the other way
                assert np.abs(rows.astype(int) - found[name]).max() <= 1
            else:
                np.testing.assert_allclose(found[name].astype(float), rows.astype(float), **close)


def make_bundles(root: Path) -> dict[str, Path]:
    """A handmade one, and real ones: experts with a float cache, int8 rows, rotary keys in int8 or not."""
    wide = manifest()["graphs"] | {"prompt": {"file": "prompt.onnx", "chunk": 128}}
    found = {"handmade": make_bundle(root / "handmade"), "wide": make_bundle(root / "wide", graphs=wide)}
    with quick_tracing():
        for name, family, options in (
            ("float", "deepseek_v3", {}),
            ("int8", "deepseek_v2", {"cache": "int8"}),
            ("int8 rope", "minicpm3", {"cache": "int8", "cache_rope": "int8"}),
        ):
            source = make_checkpoint(root / f"{family}-checkpoint", family, num_hidden_layers=2)
            found[name] = export(source, root / name.replace(" ", "-"), max_context=512, chunk=16, **options)
    return found
