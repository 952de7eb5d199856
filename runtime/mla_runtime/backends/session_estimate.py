"""Whether a session fits the device, before anything is allocated for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mla_runtime.backends.contexts import Engines
from mla_runtime.backends.cuda import Device
from mla_runtime.backends.session_places import (
    SessionPlaces,
    Sizes,
    cache_shapes,
    input_shapes,
    session_places,
)
from mla_runtime.bundle import Bundle
from mla_runtime.cache import rungs
from mla_runtime.errors import CapacityError
from mla_runtime.manifest import Phase
from mla_runtime.wording import counted

# For what TensorRT, the driver and recordings take by themselves: chosen, not measured.
RESERVE = 256 << 20


def fitting_places(
    device: Device, engines: Engines, bundle: Bundle, sizes: Sizes, stream: int
) -> SessionPlaces:
    """Lay out a session's memory; where it is too much, `CapacityError` says how many rows would fit."""

    def places_of(rows: int) -> SessionPlaces:
        smaller = replace(sizes, rows=rows)
        return session_places(bundle, smaller, _activation_bytes(engines, bundle, smaller, stream))

    places = places_of(sizes.rows)
    free = max(device.free_memory() - RESERVE, 0)
    if places.nbytes <= free:
        return places
    fitting = _most(lambda rows: places_of(rows).nbytes <= free, sizes.rows)
    msg = (
        f"{counted(sizes.batch, 'sequence')} of {counted(sizes.rows, 'row')} take {places.nbytes:,} bytes of "
        f"{device.name} ({places.cache_bytes:,} of cache, the rest activations, inputs and outputs), where "
        f"{free:,} are free beside the weights and {RESERVE:,} kept for TensorRT's own; "
    )
    if fitting:
        raise CapacityError(f"{msg}open the session with max_context {fitting}, the most that fits")
    raise CapacityError(f"{msg}not one row fits: take a smaller batch, or free memory on the device")


def _most(fits: Callable[[int], bool], too_many: int) -> int:
    """Give the largest number of rows below `too_many` that fits, by halves; 0 where none does."""
    least = 0
    while too_many - least > 1:
        middle = (least + too_many) // 2
        if fits(middle):
            least = middle
        else:
            too_many = middle
    return least


def _activation_bytes(engines: Engines, bundle: Bundle, sizes: Sizes, stream: int) -> int:
    """Give the most that any call of a session needs: of all T, for steps and for prompts of the widest S."""
    widths: dict[Phase, int] = {"step": 1, "prompt": sizes.width}
    most = 0
    for phase, width in widths.items():
        context = engines.context(phase, stream, fixed=False)
        inputs = input_shapes(bundle.manifest.inputs, sizes.batch, width)
        for rows in rungs(sizes.rows):
            most = max(most, context.set_shapes(inputs | cache_shapes(bundle.cache, sizes.batch, rows)))
    return most
