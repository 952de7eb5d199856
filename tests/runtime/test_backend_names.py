"""Backends by name: what is imported when, and what is said where a driver or a package is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mla_runtime
from mla_runtime import backends
from mla_runtime.backends import cuda
from mla_runtime.errors import BackendError

FLAVOURS = ("tensorrt-rtx", "tensorrt")


class NoDriver:
    """Bindings on a machine that has no driver."""

    def cuInit(self, flags: int) -> None:  # noqa: N802 - CUDA's name
        raise RuntimeError('Failure finding "libcuda.so"\nmore of it')


def test_unknown_names_are_told_with_those_that_are_known(bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"known are ort:cpu, tensorrt-rtx, tensorrt$"):
        mla_runtime.open(bundle, backend="tensorrt-trx")


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_missing_driver_is_one_sentence_that_says_what_can_be_done(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("cuda.bindings")
    monkeypatch.setattr(package, "driver", NoDriver())
    with pytest.raises(BackendError) as raised:
        mla_runtime.open(bundle, backend=name)
    instead = {
        "tensorrt-rtx": "build for a named card with: mla-export build BUNDLE --for sm89",
        "tensorrt": "run it where there is an NVIDIA GPU",
    }
    assert str(raised.value) == f"backend {name}: no CUDA driver is here; {instead[name]}"


@pytest.mark.parametrize("name", FLAVOURS)
def test_missing_bindings_are_told_with_the_line_that_installs_them(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    extra = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}[name]
    with pytest.raises(BackendError, match=rf"cuda-bindings is not .*pip install 'mla-export\[{extra}\]'"):
        mla_runtime.open(bundle, backend=name)


def test_a_call_that_fails_is_named_with_the_drivers_own_words() -> None:
    api = pytest.importorskip("cuda.bindings.driver")

    class Api:
        CUresult = api.CUresult

        def cuGetErrorString(self, status: object) -> tuple[object, bytes]:  # noqa: N802
            return api.CUresult.CUDA_SUCCESS, b"an illegal memory access was encountered"

        def cuStreamSynchronize(self, stream: int) -> tuple[object]:  # noqa: N802
            return (api.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)

        def cuMemGetInfo(self) -> tuple[object, int, int]:  # noqa: N802
            return api.CUresult.CUDA_SUCCESS, 1, 2

        def cuDeviceGetCount(self) -> tuple[object, int]:  # noqa: N802
            return api.CUresult.CUDA_SUCCESS, 3

    driver = object.__new__(cuda.Driver)
    driver.api = Api()
    with pytest.raises(BackendError, match=r"^CUDA: cuStreamSynchronize: an illegal memory access"):
        driver.call("cuStreamSynchronize", 1)
    assert driver.call("cuMemGetInfo") == (1, 2)
    assert driver.call("cuDeviceGetCount") == 3


def test_a_jetson_counts_what_the_system_would_make_room_for(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemAvailable:    40 kB\n")
    assert cuda._available_memory(file) == 40 * 1024
    assert cuda._available_memory(tmp_path / "none") == 0


def test_naming_backends_imports_none() -> None:
    code = (
        "import sys, mla_runtime.backends\n"
        "assert not {'cuda', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)\n"
    )
    root = Path(backends.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
