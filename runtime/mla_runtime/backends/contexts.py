"""TensorRT's engines of a bundle on a device, and the contexts in which they run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_runtime.engines import log
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.record import Built, EngineFile
from mla_runtime.errors import EngineError
from mla_runtime.manifest import PHASES, Phase

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An engine, and the kernels compiled for it so far where its flavour compiles any."""

    engine: Any
    kernels: Any


class Context:
    """One engine's phase at work: shapes, addresses, memory, and a place in a stream."""

    def __init__(self, library: Library, loaded: _Loaded, profile: int, stream: int, *, fixed: bool) -> None:
        engine = loaded.engine
        self._library = library
        with log.errors(library.trt):
            self._raw = library.context(engine, loaded.kernels, fixed=fixed)
        if self._raw is None:
            raise EngineError(f"{library.flavour.name} makes no context of this engine: {self._said()}")
        self._names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        self._inputs = {
            name for name in self._names if engine.get_tensor_mode(name) == library.trt.TensorIOMode.INPUT
        }
        if not self._raw.set_optimization_profile_async(profile, stream):
            raise EngineError(f"the engine has no profile {profile}: {self._said()}")

    def set_shapes(self, shapes: Shapes) -> int:
        """Set the shapes of the contract's inputs; gives the bytes of activation memory that they take."""
        for name, shape in shapes.items():
            if name in self._inputs and not self._raw.set_input_shape(name, shape):
                raise EngineError(f"the engine refuses {name} of shape {shape}: {self._said()}")
        with log.errors(self._library.trt) as errors:
            nbytes = int(self._raw.update_device_memory_size_for_shapes())
        if errors:
            raise EngineError(f"the engine refuses the shapes {dict(shapes)}: {self._said()}")
        return nbytes

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set where every input and output of the engine lies."""
        for name in self._names:
            if name not in addresses:
                raise EngineError(
                    f"the engine has a tensor {name!r} that its record does not; build it again"
                )
            if not self._raw.set_tensor_address(name, addresses[name]):
                raise EngineError(f"the engine refuses an address for {name}: {self._said()}")

    def give_memory(self, address: int, nbytes: int) -> None:
        """Give the memory for activations, which other contexts may use at other times."""
        self._library.give_memory(self._raw, address, nbytes)

    def can_capture(self, stream: int) -> bool:
        """Whether the context says that it can be recorded."""
        return self._library.can_capture(self._raw, stream)

    def enqueue(self, stream: int) -> None:
        """Queue one run. Raises `EngineError` where TensorRT refuses it."""
        with log.errors(self._library.trt):
            queued = self._raw.execute_async_v3(stream)
        if not queued:
            raise EngineError(f"{self._library.flavour.name}: {self._said()}")

    def _said(self) -> str:
        said = log.logger(self._library.trt).kept
        return said[-1] if said else "TensorRT does not say why"


class Engines:
    """The engines of a build, loaded."""

    def __init__(self, library: Library, built: Built, folder: Path) -> None:
        self._library = library
        self._runtime = library.runtime()
        loaded = {entry.file: self._load(folder / entry.file, entry) for entry in built.engines}
        self._of: dict[Phase, tuple[_Loaded, int]] = {
            phase: (loaded[built.engine(phase).file], built.engine(phase).profiles[phase]) for phase in PHASES
        }

    def context(self, phase: Phase, stream: int, *, fixed: bool) -> Context:
        """Make a context for a phase; `fixed` where its shapes are set once."""
        engine, profile = self._of[phase]
        return Context(self._library, engine, profile, stream, fixed=fixed)

    def close(self) -> None:
        """Free the engines; no context of theirs may be left."""
        self._of.clear()
        self._runtime = None

    def _load(self, path: Path, entry: EngineFile) -> _Loaded:
        try:
            plan = path.read_bytes()
        except OSError as cause:
            raise EngineError(f"{path}: {cause.strerror}; build the engines again") from cause
        # An engine is code: what is loaded is what was hashed, not what lies there a moment later.
        if len(plan) != entry.size or hashlib.sha256(plan).hexdigest() != entry.sha256:
            raise EngineError(f"{path}: not the file that was built; delete it and build the engines again")
        engine = self._library.load_engine(self._runtime, plan, str(path))
        return _Loaded(engine, self._library.kernel_cache(engine))
