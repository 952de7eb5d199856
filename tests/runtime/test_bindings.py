"""All that is used of CUDA's and TensorRT's bindings exists in the real ones."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2] / "runtime" / "mla_runtime"
# What holds an object of the bindings, by its name in the source, and the classes it may be of.
TENSORRT = {
    "builder": ("Builder",),
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "network": ("INetworkDefinition",),
    "parser": ("OnnxParser",),
    "profile": ("IOptimizationProfile",),
    "layer": ("ILayer",),
    "engine": ("ICudaEngine",),
    "runtime": ("Runtime",),
    "context": ("IExecutionContext",),
    "_raw": ("IExecutionContext",),
}
# Other files give these names to things of our own.
FILES = ("engines/flavour.py", "engines/log.py", "engines/network.py", "engines/build.py")
FILES += ("engines/profiles.py", "engines/progress.py", "backends/contexts.py")


def module(name: str) -> Any:
    if "CI" not in os.environ:  # there a missing package must not pass for one in which all is there
        return pytest.importorskip(name, reason="not installed: pip install mla-export[rtx]")
    return importlib.import_module(name)


def chains(source: str) -> Iterator[list[str]]:
    """Every chain of attributes: a.b().c as [b, c] too, since what a call gives has a name nowhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                names.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                names.append(inner.id)
            yield names[::-1]


def lacking(things: tuple[Any, ...], attributes: list[str]) -> str | None:
    """The first of a chain of attributes that none of `things` has, as far as they can be told."""
    for attribute in attributes:
        found = [getattr(thing, attribute) for thing in things if hasattr(thing, attribute)]
        if not found:
            return attribute
        # an instance's attribute has no value in its class
        things = tuple(value for value in found if isinstance(value, type))
        if not things:
            return None
    return None


def misused(source: str, trt: Any) -> list[str]:
    """What `source` asks of TensorRT's bindings and they have not."""
    wrong = []
    for chain in chains(source):
        for place, name in enumerate(chain[:-1]):
            if name == "trt" and (missing := lacking((trt,), chain[place + 1 :])):
                wrong.append(f"trt.{missing}")
            elif name in TENSORRT and (place == 0 or chain[:place] == ["self"]):
                classes = tuple(getattr(trt, kind) for kind in TENSORRT[name])
                if missing := lacking(classes, chain[place + 1 :]):
                    wrong.append(f"{name}.{missing}")
    return wrong


def test_tensorrt_has_all_that_is_asked_of_it() -> None:
    trt = module("tensorrt_rtx")
    seen = 0
    for name in FILES:
        if (ROOT / name).exists():
            source = (ROOT / name).read_text(encoding="utf-8")
            assert misused(source, trt) == [], name
            seen += sum(bool({"trt", *TENSORRT} & set(chain)) for chain in chains(source))
    assert seen > 30


@pytest.mark.parametrize(
    "line",
    [
        "builder.build_network(1)",
        "trt.ExecutionContextAllocationStrategy.OURS",
        "self.trt.Runtimes(log)",
        "self._raw.execute_async_v2(stream)",
        "config.cuda_graphs = trt.CudaGraphStrategy.DISABLED",
    ],
)
def test_what_tensorrt_has_not_is_found(line: str) -> None:
    assert misused(line, module("tensorrt_rtx"))


def cuda_names(source: str) -> set[str]:
    """Functions called by name, and chains of constants of the driver."""
    called = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"cu[A-Z]\w+", node.value)
    }
    roots = {"api", "nvrtc", "kinds"}
    used = {
        ".".join(chain[place + 1 :])
        for chain in chains(source)
        for place, name in enumerate(chain[:-1])
        if name in roots
    }
    return called | used


@pytest.mark.parametrize(("file", "name"), [("cuda", "driver"), ("nvrtc", "nvrtc")])
def test_cuda_has_all_that_is_asked_of_it(file: str, name: str) -> None:
    api = module(f"cuda.bindings.{name}")
    source = (ROOT / "backends" / f"{file}.py").read_text(encoding="utf-8")
    names = cuda_names(source)
    assert len(names) > 8
    for chain in names:
        top = api.CUdevice_attribute if chain.startswith("CU_DEVICE_ATTRIBUTE") else api
        assert lacking((top,), chain.split(".")) is None, chain


def test_what_cuda_has_not_is_found() -> None:
    api = module("cuda.bindings.driver")
    (name,) = cuda_names("call('cuMemAllocAll', 1)")
    assert lacking((api,), [name])
    assert lacking((api,), ["CUresult", "CUDA_SUCCEEDED"])
