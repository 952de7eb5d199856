"""A bundle's graph as a TensorRT network whose weights stand outside of it.

An engine that holds its weights holds them once for itself: two engines, and for floats even two profiles
of one engine, have them twice. So whatever is large becomes an input of the network, and both engines read
the same memory, which is filled from the bundle. Read off the kernels that TensorRT-RTX 1.7.1 chooses,
products are the same for float weights, and for int8 with a scale a channel. Weights in int4 stay: their
dequantisation becomes a part of the product only where they are constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mla_runtime.bundle import Bundle
from mla_runtime.engines import log
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.record import Outside
from mla_runtime.engines.refusals import errors_of, refusal
from mla_runtime.errors import EngineError
from mla_runtime.external import External, external_tensors
from mla_runtime.manifest import Phase

# Below this a weight may be there twice: norms and scales, each an input more otherwise.
SMALL = 64 * 1024


@dataclass(frozen=True, slots=True)
class Network:
    """A parsed network, the weights it takes as inputs, and whether it holds weights in int4."""

    network: Any
    outside: tuple[Outside, ...]
    holds_int4: bool
    # the parser owns what the network's constants point to
    parser: Any


def parse(bundle: Bundle, phase: Phase, library: Library, builder: Any) -> Network:
    """Parse the graph of a phase and take its weights out.

    Raises `EngineError` for a graph that the parser refuses, or one that is not what the manifest says.
    """
    trt = library.trt
    path = bundle.paths[bundle.graph(phase).file]
    network = library.network(builder)
    parser = trt.OnnxParser(network, log.logger(trt))
    if not parser.parse_from_file(str(path)):
        raise refusal(path, library.flavour.name, library.version, errors_of(parser))
    _check_signature(bundle, network, trt, path)
    outside = tuple(_take_out(network, trt, {tensor.name: tensor for tensor in external_tensors(path)}))
    return Network(network, outside, any(_is_int4(layer, trt) for layer in _layers(network)), parser)


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(place) for place in range(network.num_layers))


def _take_out(network: Any, trt: Any, places: Mapping[str, External]) -> Iterator[Outside]:
    """Make an input of every constant that is large, or int8 and looked up, which no constant may be."""
    users: dict[str, list[tuple[Any, int]]] = {}
    constants = []
    for layer in _layers(network):
        if layer.type == trt.LayerType.CONSTANT:
            constants.append(layer)
        for place in range(layer.num_inputs):
            tensor = layer.get_input(place)
            if tensor is not None:
                users.setdefault(tensor.name, []).append((layer, place))
    for layer in constants:
        value, stored = layer.get_output(0), places.get(layer.name)
        readers = users.get(value.name, [])
        if stored is None or not readers or not _goes_out(value, stored, readers, trt):
            continue
        given = network.add_input(layer.name, value.dtype, tuple(value.shape))
        for reader, index in readers:
            reader.set_input(index, given)
        dtype = np.dtype(trt.nptype(value.dtype)).name
        yield Outside(layer.name, dtype, tuple(value.shape), stored.location, stored.offset)


def _goes_out(value: Any, stored: External, readers: Sequence[tuple[Any, int]], trt: Any) -> bool:
    dequantised = [(layer, index) for layer, index in readers if layer.type == trt.LayerType.DEQUANTIZE]
    if any(index > 0 or _is_int4(layer, trt) for layer, index in dequantised):
        return False  # its scales are constants to every version, and int4 codes better are
    if value.dtype == trt.int8 and len(dequantised) < len(readers):
        return True
    return stored.length >= SMALL and value.dtype in (trt.float32, trt.float16, trt.int8)


def _is_int4(layer: Any, trt: Any) -> bool:
    return bool(layer.type == trt.LayerType.DEQUANTIZE and layer.get_input(0).dtype == trt.int4)


def _check_signature(bundle: Bundle, network: Any, trt: Any, path: Path) -> None:
    """Compare names and types of inputs and outputs with the manifest's tables."""
    manifest = bundle.manifest
    inputs = {t.name: t.dtype for t in manifest.inputs} | {t.past: t.dtype for t in manifest.cache}
    outputs = {t.name: t.dtype for t in manifest.outputs} | {t.present: t.dtype for t in manifest.cache}
    found_inputs = [network.get_input(place) for place in range(network.num_inputs)]
    found_outputs = [network.get_output(place) for place in range(network.num_outputs)]
    for kind, listed, tensors in (("input", inputs, found_inputs), ("output", outputs, found_outputs)):
        found = {tensor.name: np.dtype(trt.nptype(tensor.dtype)).name for tensor in tensors}
        for name in sorted(listed.keys() | found.keys()):
            if listed.get(name) != found.get(name):
                msg = f"{path}: {kind} {name!r} is {found.get(name, 'absent')} to TensorRT and "
                raise EngineError(f"{msg}{listed.get(name, 'absent')} in bundle.json; export it again")
