"""A session's memory on the device: as much as it may need, estimated first and then allocated once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_runtime.backends.base import Call, Float32
from mla_runtime.backends.contexts import Engines
from mla_runtime.backends.cuda import Device
from mla_runtime.backends.device_cache import DeviceCache
from mla_runtime.backends.device_steps import DeviceSteps, Want
from mla_runtime.backends.session_estimate import fitting_places
from mla_runtime.backends.session_places import Answer, Sizes
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, EngineError, MlaError
from mla_runtime.top import MOST, Finite, Top
from mla_runtime.wording import counted


class TensorrtBuffers:
    """The cache of one session on a device, and the engines' runs over it.

    `check_open` raises where the model is closed, `on_close` is called once when the memory is free.
    """

    def __init__(
        self,
        device: Device,
        engines: Engines,
        bundle: Bundle,
        weights: Mapping[str, int],
        sizes: Sizes,
        check_open: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        self._device = device
        self._sizes = sizes
        self._check_open = check_open
        self._lost: str | None = None
        freed = [on_close]
        self._free = weakref.finalize(self, _free, device, freed)
        self._free.atexit = False
        try:
            device.enter()
            self._stream = stream = device.stream()
            freed.append(stream.close)
            places = fitting_places(device, engines, bundle, sizes, stream.handle)
            base = device.allocate(places.nbytes, f"a session of {counted(sizes.rows, 'row')}")
            freed.append(lambda: device.free(base))
            most = Answer(sizes.batch, min(MOST, sizes.vocab)).nbytes
            given = device.pinned(max(places.input_bytes, 24 * len(bundle.cache)))
            freed.append(lambda: device.free_pinned(given))
            self._found = found = device.pinned(max(4 * sizes.batch * sizes.vocab, most))
            freed.append(lambda: device.free_pinned(found))
            self.steps = DeviceSteps(engines, bundle, stream, sizes, places, base, weights, (given, found))
            freed.append(self.steps.close)
            addresses = [base + place for place in places.cache]
            self._cache = DeviceCache(stream, bundle.cache, addresses, sizes.batch, sizes.rows)
            self._nbytes = places.cache_bytes
            stream.zero(base, places.cache_bytes)
            self.steps.write_table()
            stream.synchronise()
        except BaseException:
            self._free()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, all of them allocated."""
        return self._nbytes

    def run(self, call: Call) -> Float32:
        """Compute all logits; the new rows land behind the valid ones."""
        self._run(call, None)
        shown = (len(call.logit_rows), self._sizes.vocab)
        return self._found[: 4 * shown[0] * shown[1]].view(np.float32).reshape(shown).copy()

    def top(self, call: Call, count: int) -> tuple[Top, Finite]:
        """Compute logits and choose on the device; as `run` otherwise."""
        self._run(call, count)
        layout, shown = Answer(self._sizes.batch, count), len(call.logit_rows)
        ids = self._found[: layout.logits].view(np.int64).reshape(-1, count)
        logits = self._found[layout.logits : layout.flags].view(np.float32).reshape(-1, count)
        flags = self._found[layout.flags : layout.nbytes].view(np.int32)
        return Top(ids[:shown].copy(), logits[:shown].copy()), flags[:shown] == 0

    def keep(self, call: Call) -> None:
        """Do nothing: the step that was queued has put the rows in their slots."""

    def wipe(self, call: Call) -> None:
        """Zero the slots of `call`, after whatever is still under way."""
        if self._lost is not None:
            return
        try:
            self._device.enter()
            self._stream.synchronise()
            self._cache.wipe(call)
            self._stream.synchronise()
        except MlaError as cause:  # the error that led here says more
            self._lost = str(cause)

    def rows(self, sequence: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """Copy the first `count` rows [count, *row] of a sequence out, by the name of their `past` input."""
        self._enter()
        return self._cache.rows(sequence, count, self._found)

    def fill(self, rows: int) -> None:
        """Write `rows` rows of small random numbers in each sequence."""
        self._enter()
        self._cache.fill(rows, self._found)

    def close(self) -> None:
        """Free all of it."""
        self._free()

    def _run(self, call: Call, want: Want) -> None:
        """Run a call to its end: this is where a step waits for the device, once."""
        self._enter()
        with _located(call):
            rows = self._cache.show(int((call.past_lengths + call.new_lengths).max()))
            self.steps.queue(call, rows, want)
            self._stream.synchronise()

    def _enter(self) -> None:
        self._check_open()
        if self._lost is not None:
            raise BackendError(f"the device failed in this session ({self._lost}); open another one")
        self._device.enter()


@contextmanager
def _located(call: Call) -> Iterator[None]:
    """Say in an error of the device or of TensorRT which call it was."""
    try:
        yield
    except (BackendError, EngineError) as cause:
        batch, width = call.input_ids.shape
        depth = int(call.past_lengths.max())
        msg = f"{call.phase} graph, {batch} × {width} new tokens at depth {depth}: {cause}"
        raise type(cause)(msg) from cause


def _free(device: Device, freed: list[Callable[[], None]]) -> None:
    """Free what was taken, the last first; on a device that failed nothing is left to free."""
    with suppress(MlaError):
        device.enter()
    while freed:
        with suppress(MlaError):
            freed.pop()()
