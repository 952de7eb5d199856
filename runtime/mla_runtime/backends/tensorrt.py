"""TensorRT, in both flavours: a bundle's engines on a GPU, and its weights once for both of them."""

from __future__ import annotations

import threading
from pathlib import Path

from mla_runtime.backends.base import CacheBuffers
from mla_runtime.backends.contexts import Engines
from mla_runtime.backends.cuda import Device
from mla_runtime.backends.device_weights import DeviceWeights, weight_bytes
from mla_runtime.backends.session_estimate import RESERVE
from mla_runtime.backends.session_places import Sizes
from mla_runtime.backends.tensorrt_buffers import TensorrtBuffers
from mla_runtime.bundle import Bundle
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.record import Built
from mla_runtime.errors import CapacityError, EngineError, SessionError
from mla_runtime.manifest import Phase

# Prompts are padded to one of few widths, for each of which kernels are chosen anew.
_NARROWEST = 16


class TensorrtBackend:
    """Engines and weights on a device; sessions on any thread share them.

    `built` are the engines in `folder` that were built from `bundle` with `library`. Memory is freed when
    the backend and all of its sessions are closed.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: Library,
        built: Built,
        folder: Path,
        device: Device | None = None,
    ) -> None:
        self.name = built.flavour
        self._bundle = bundle
        self._built = built
        if built.bundle != bundle.raw["sha256"]:
            msg = f"{folder}: engines of another bundle than {bundle.path}"
            raise EngineError(f"{msg}; build them again: mla-export build {bundle.path}")
        self.device = Device(self.name) if device is None else device
        self.device.enter()
        try:
            self._check_memory(sum(engine.size for engine in built.engines))
            self._engines = Engines(library, built, folder)
            self._weights = DeviceWeights(self.device, bundle, built.outside)
        except BaseException:
            self.device.close()
            raise
        self._lock = threading.RLock()  # a session may be freed by the collector, at any moment
        self._sessions = 0
        self._closed = False

    @property
    def chunk(self) -> int:
        """The most new tokens of a call: what the engines were built for."""
        return self._built.limits.chunk

    def width(self, phase: Phase, new: int) -> int:
        """Give `new` in a step, and one of few widths in a prompt: 16, 32, 64, … up to the chunk."""
        if phase == "step":
            return new
        width = _NARROWEST
        while width < new:
            width *= 2
        return min(width, self._chunk)

    def buffers(self, batch: int, max_rows: int) -> CacheBuffers:
        """Allocate a session's memory; `CapacityError` for more than fits or engines were built for."""
        limits = self._built.limits
        for what, asked, most, option in (
            ("batch", batch, limits.batch, "--max-batch"),
            ("max_context", max_rows, limits.context, "--max-context"),
        ):
            if asked > most:
                msg = f"{what} {asked} passes the {most} that the engines are built for; ask for less, or "
                raise CapacityError(f"{msg}build them with {option} {asked}")
        with self._lock:
            self._check_open()
            self._sessions += 1
        width = self.width("prompt", min(self._chunk, max_rows))
        sizes = Sizes(batch, max_rows, width, self._bundle.model.vocab_size)
        return TensorrtBuffers(
            self.device,
            self._engines,
            self._bundle,
            self._weights.addresses,
            sizes,
            self._check_open,
            self._session_closed,
        )

    def close(self) -> None:
        """Free engines and weights, once no session uses them; those still open get a `SessionError`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._free_if_unused()

    @property
    def _chunk(self) -> int:
        return min(self._bundle.chunk, self.chunk)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError(f"{self._bundle.path}: this model is closed; open the bundle again")

    def _session_closed(self) -> None:
        with self._lock:
            self._sessions -= 1
            self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._closed and self._sessions == 0:
            self.device.enter()
            self._engines.close()
            self._weights.close()
            self.device.close()

    def _check_memory(self, engine_bytes: int) -> None:
        outside = weight_bytes(self._built.outside)
        free = max(self.device.free_memory() - RESERVE, 0)
        if outside + engine_bytes > free:
            msg = (
                f"{self._bundle.path}: {outside:,} bytes of weights and {engine_bytes:,} of engines do not "
                f"fit the {free:,} that are free on {self.device.name}; free memory there, or export "
            )
            raise CapacityError(f"{msg}with smaller weights (--weights int8 or int4): no max_context fits")
