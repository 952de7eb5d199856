"""What a model takes on devices, and how fast it is there at most: the numbers behind `mla-export cost`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from mla_export.devices import Device
from mla_export.fitting import longest_context, needed_bytes, workspace_bytes
from mla_export.inspect import Kind, inspect
from mla_export.roofline import Crossing, crossing, prompt_seconds, step_bytes, step_seconds
from mla_export.weight_bytes import Formats, Rows, Weights, cache_token_bytes, weight_bytes
from mla_graphs import Geometry
from mla_graphs.geometry import Absorb, Float
from mla_runtime.errors import InputError
from mla_runtime.manifest import Manifest
from mla_runtime.wording import counted

CONTEXTS = (4096, 32768, 131072)
CHUNK = 512  # what `export` takes for graphs in standard operators
FORMS: tuple[Absorb, ...] = get_args(Absorb)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
CACHES: tuple[tuple[Rows, Rows], ...] = (("float", "float"), ("int8", "float"), ("int8", "int8"))


@dataclass(frozen=True, slots=True)
class Point:
    """At one context a sequence: what the device has to hold, and the least times of a step and a prompt."""

    context: int
    cache: int
    workspace: int
    needed: int
    fits: bool
    step_seconds: float
    step_rate: float
    prompt_seconds: float
    prompt_rate: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model in one choice of formats on one device; bytes."""

    formats: Formats
    weights: int
    step_weights: float
    cache_token: int
    longest: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Faster:
    """Where a step in one form is shorter than in another, with such weights and a cache in floats."""

    weights: Weights
    form: Absorb
    than: Absorb
    where: Crossing


@dataclass(frozen=True, slots=True)
class OnDevice:
    """All that is estimated for one device; `own` is of the bundle that was given."""

    device: Device
    estimates: tuple[Estimate, ...]
    own: Estimate | None
    crossings: tuple[Faster, ...]

    @property
    def usual(self) -> list[Estimate]:
        """Estimates of the default form of attention, rotary keys in floats, finest formats first."""
        return [
            entry
            for entry in self.estimates
            if entry.formats.absorb == "factored" and entry.formats.rope == "float"
        ]


@dataclass(frozen=True, slots=True)
class Model:
    """What is to be estimated: a geometry, and of a bundle its own formats and the chunk of its prompts."""

    path: Path
    kind: Kind
    geometry: Geometry
    own: Formats | None
    chunk: int | None

    @classmethod
    def read(cls, path: str | Path) -> Model:
        """Read a config.json, a checkpoint's folder or a bundle; raises as `inspect` does."""
        found = inspect(path)
        if found.bundle is None:
            return cls(found.path, found.kind, found.geometry, None, None)
        own = formats_of(found.bundle.manifest)
        return cls(found.path, found.kind, found.geometry, own, found.bundle.chunk)


@dataclass(frozen=True, slots=True)
class Request:
    """Contexts a sequence, sequences at once, and tokens of a prompt that run at once."""

    contexts: tuple[int, ...]
    batch: int
    chunk: int

    @classmethod
    def of(cls, model: Model, contexts: Sequence[int] | None, batch: int, chunk: int | None) -> Request:
        """Fill in what was not given; raises `InputError` for a context that the model does not have."""
        limit = model.geometry.max_context
        if contexts is None:
            contexts = [context for context in CONTEXTS if context < limit] + [limit]
            contexts = contexts[: len(CONTEXTS)]
        if max(contexts) > limit:
            raise InputError(
                f"--context {max(contexts)}: {model.path} has positions for {counted(limit, 'token')}; "
                "give at most that"
            )
        return cls(tuple(sorted(set(contexts))), batch, chunk or model.chunk or CHUNK)


def formats_of(manifest: Manifest) -> Formats:
    """Give the formats that a bundle is in."""
    precision = manifest.precision
    floats: Float = "float16" if precision.compute == "float16" else "float32"
    weights: dict[str, Weights] = {"int8": "int8", "int4": "int4"}
    rows: list[Rows] = [
        "int8" if kind.endswith("int8") else "float" for kind in (precision.cache, precision.rope)
    ]
    absorb: dict[str, Absorb] = {form: form for form in FORMS}
    return Formats(
        absorb=absorb[manifest.absorb],
        weights=weights.get(precision.weights, "float"),
        cache=rows[0],
        rope=rows[1],
        floats=floats,
        group=precision.group or 32,
        head=4 if precision.head == "int4" else 8,
        target=manifest.target,
    )


def all_formats(floats: Float) -> list[Formats]:
    """Give every combination that an export can have, as it is by default otherwise; finest first."""
    return [
        Formats(absorb, weights, cache, rope, floats)
        for absorb, weights, (cache, rope) in product(FORMS, WEIGHTS, CACHES)
        if absorb != "expanded" or cache == "float"
    ]


def on_device(model: Model, device: Device, request: Request) -> OnDevice:
    """Estimate a model on one device."""
    g, batch = model.geometry, request.batch
    plain = {(f.absorb, f.weights): f for f in all_formats(device.floats) if f.cache == "float"}
    pairs: tuple[tuple[Absorb, Absorb], ...] = (
        ("factored", "expanded"),
        ("merged", "expanded"),
        ("merged", "factored"),
    )
    crossings = tuple(
        Faster(
            weights,
            form,
            than,
            crossing(g, plain[form, weights], plain[than, weights], device, batch),
        )
        for weights, (form, than) in product(WEIGHTS, pairs)
    )
    return OnDevice(
        device=device,
        estimates=tuple(_estimate(g, formats, device, request) for formats in all_formats(device.floats)),
        own=None if model.own is None else _estimate(g, model.own, device, request),
        crossings=crossings,
    )


def _estimate(g: Geometry, formats: Formats, device: Device, request: Request) -> Estimate:
    batch, chunk = request.batch, request.chunk
    return Estimate(
        formats=formats,
        weights=weight_bytes(g, formats),
        step_weights=step_bytes(g, formats, batch),
        cache_token=cache_token_bytes(g, formats),
        longest=longest_context(g, formats, device, batch, chunk),
        points=tuple(_point(g, formats, device, request, context) for context in request.contexts),
    )


def _point(g: Geometry, formats: Formats, device: Device, request: Request, context: int) -> Point:
    batch, chunk = request.batch, request.chunk
    needed = needed_bytes(g, formats, batch, context, chunk)
    step = step_seconds(g, formats, device, batch, context)
    prompt = prompt_seconds(g, formats, device, batch, context, chunk)
    return Point(
        context=context,
        cache=batch * context * cache_token_bytes(g, formats),
        workspace=workspace_bytes(g, formats, batch, context, chunk),
        needed=needed,
        fits=needed <= device.usable,
        step_seconds=step,
        step_rate=batch / step,
        prompt_seconds=prompt,
        prompt_rate=batch * context / prompt,
    )


def as_json(model: Model, request: Request, found: Sequence[OnDevice]) -> dict[str, Any]:
    """Give everything as plain JSON values: bytes, seconds, tokens a second."""
    return {
        "path": str(model.path),
        "kind": model.kind,
        "geometry": asdict(model.geometry),
        "request": asdict(request),
        "devices": [
            {
                "device": {
                    **asdict(entry.device),
                    "usable": entry.device.usable,
                    "floats": entry.device.floats,
                },
                "own": None if entry.own is None else asdict(entry.own),
                "estimates": [asdict(estimate) for estimate in entry.estimates],
                "faster": [asdict(faster) for faster in entry.crossings],
            }
            for entry in found
        ],
    }
