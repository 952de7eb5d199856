"""Stands for TensorRT's bindings: an engine is a list of ONNX files, which ONNX Runtime computes.

What the real ones ask for is asked for: shapes within the profile, aligned addresses for every tensor, memory
for activations, which a run leaves full of rubbish.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from mla_runtime.bundle import Bundle
from mla_runtime.engines import log
from mla_runtime.engines.flavour import FLAVOURS, Library
from mla_runtime.engines.record import Built, EngineFile, Limits, Outside

RUBBISH = 0xEE
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
}


class Kind(Enum):
    INPUT = 1
    OUTPUT = 2


class Logger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1

    def __init__(self) -> None:
        self.kept: list[str] = []


class Strategy:
    USER_MANAGED = "user managed"


class Specialization:
    EAGER = "eager"
    LAZY = "lazy"


class Graphs:
    DISABLED = "disabled"


@dataclass
class Config:
    """What the RTX flavour's contexts are made with."""

    strategy: Any = None
    kernels: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, kernels: object) -> bool:
        self.kernels = kernels
        return True

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


@dataclass
class Bindings:
    """A module such as `tensorrt_rtx`; `capturable` is what contexts say, `refuse` fails an engine's runs.

    `device` reads and writes memory by its address.
    """

    device: Any
    capturable: bool = True
    refuse: bool = False
    poison: Any = None
    runs: int = 0
    contexts: list[Context] = field(default_factory=list)
    __version__ = "1.7.1"
    ILogger = Logger
    TensorIOMode = Kind
    ExecutionContextAllocationStrategy = Strategy

    def __post_init__(self) -> None:
        self.__name__ = f"fake_{id(self)}"

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - the bindings' own name
        return _Runtime(self)


class RtxBindings(Bindings):
    """Those of the RTX flavour."""

    DynamicShapesKernelSpecializationStrategy = Specialization
    CudaGraphStrategy = Graphs


@dataclass
class _Runtime:
    trt: Bindings

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not plan.startswith(b"{"):
            return None
        return Engine(self.trt, json.loads(plan))


class Engine:
    def __init__(self, trt: Bindings, plan: Mapping[str, Any]) -> None:
        self.trt = trt
        self.limits = Limits(**plan["limits"])
        self.graphs = [
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in plan["graphs"]
        ]
        first = self.graphs[0]
        self.outside = plan["outside"]
        self.inputs = [tensor.name for tensor in first.get_inputs()]
        self.outputs = [tensor.name for tensor in first.get_outputs()]
        self._names = [*self.inputs, *self.outside, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, place: int) -> str:
        return str(self._names[place])

    def get_tensor_mode(self, name: str) -> Kind:
        return Kind.OUTPUT if name in self.outputs else Kind.INPUT

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Any) -> Context:
        context = (Context if hasattr(self.trt, "CudaGraphStrategy") else OldContext)(self, config)
        self.trt.contexts.append(context)
        return context


class Context:
    def __init__(self, engine: Engine, config: Any) -> None:
        self.engine = engine
        self.config = config
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile < len(self.engine.graphs)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in self.engine.inputs
        limits = self.engine.limits
        self.shapes[name] = shape
        if name.startswith("past") and len(shape) > 1:
            return 1 <= shape[0] <= limits.batch and 1 <= shape[1] <= limits.context
        return all(shape) and shape[0] <= limits.batch

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == set(self.engine.inputs), "not all shapes are set"
        return need(*self.shapes["input_ids"], self._rows)

    @property
    def _rows(self) -> int:
        return next(
            shape[1] for name, shape in self.shapes.items() if name.startswith("past") and len(shape) > 1
        )

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.memory = (address, nbytes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.trt.capturable

    def execute_async_v3(self, handle: int) -> bool:
        trt = self.engine.trt
        if trt.refuse:
            log.logger(trt).kept.append("the fake engine refuses")
            return False
        assert len(self.addresses) == self.engine.num_io_tensors
        assert self.memory[1] >= self.update_device_memory_size_for_shapes()
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        graph = self.engine.graphs[self.profile]
        trt.device.later(handle, lambda: run(trt, graph, shapes, addresses, memory))
        return True


class OldContext(Context):
    """Of a version that is not told how much memory there is, nor says what can be recorded."""

    @property
    def set_device_memory(self) -> Any:
        raise AttributeError

    @property
    def is_stream_capturable(self) -> Any:
        raise AttributeError

    @property
    def device_memory(self) -> int:
        return self.memory[0]

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self.memory = (address, self.update_device_memory_size_for_shapes())


def need(batch: int, width: int, rows: int) -> int:
    """Bytes of activations that the fake engines want."""
    return 64 * batch * width + 16 * batch * width * rows


def run(
    trt: Bindings,
    graph: Any,
    shapes: Mapping[str, tuple[int, ...]],
    addresses: Mapping[str, int],
    memory: tuple[int, int],
) -> None:
    trt.runs += 1
    given = {}
    for tensor in graph.get_inputs():
        dtype = np.dtype(TYPES[tensor.type])
        shape = shapes[tensor.name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        given[tensor.name] = trt.device.read(addresses[tensor.name], nbytes).view(dtype).reshape(shape)
    found = graph.run(None, given)
    trt.device.write(memory[0], np.full(memory[1], RUBBISH, dtype=np.uint8))
    for tensor, value in zip(graph.get_outputs(), found, strict=True):
        if tensor.name == "logits" and trt.poison is not None:
            value.reshape(-1)[-1] = trt.poison
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        trt.device.write(addresses[tensor.name], raw)


def library(device: Any, flavour: str = "tensorrt-rtx") -> Library:
    bindings = RtxBindings if flavour == "tensorrt-rtx" else Bindings
    return Library(FLAVOURS[flavour], bindings(device))


def outside_of(bundle: Bundle) -> list[Outside]:
    """Every weight of the step graph that lies in a file."""
    outside = []
    graph = onnx.load(bundle.paths[bundle.graph("step").file], load_external_data=False).graph
    for tensor in graph.initializer:
        dtype = {1: "float32", 3: "int8", 10: "float16"}.get(tensor.data_type)
        place = {entry.key: entry.value for entry in tensor.external_data}
        if dtype is not None and place:
            shape, offset = tuple(tensor.dims), int(place.get("offset", 0))
            outside.append(Outside(tensor.name, dtype, shape, place["location"], offset))
    return outside


def build(
    bundle: Bundle, folder: Path, limits: Limits, *, single: bool = False, flavour: str = "tensorrt-rtx"
) -> Built:
    """Write engines of `bundle` into `folder`; `single`: one of them with two profiles."""
    outside = outside_of(bundle)
    folder.mkdir(parents=True)
    paths = {phase: str(bundle.paths[bundle.graph(phase).file]) for phase in ("step", "prompt")}
    groups = [("step", "prompt")] if single else [("step",), ("prompt",)]
    engines = []
    for group in groups:
        plan = json.dumps(
            {
                "graphs": [paths[phase] for phase in group],
                "limits": {"batch": limits.batch, "context": limits.context, "chunk": limits.chunk},
                "outside": [weight.name for weight in outside],
            }
        ).encode()
        file = f"{'-'.join(group)}.engine"
        (folder / file).write_bytes(plan)
        profiles: Any = {phase: place for place, phase in enumerate(group)}
        engines.append(EngineFile(file, len(plan), hashlib.sha256(plan).hexdigest(), profiles))
    sha256 = str(bundle.raw["sha256"])
    return Built(flavour, "1.7.1", ("sm86",), sha256, limits, tuple(engines), tuple(outside), 0.0)
