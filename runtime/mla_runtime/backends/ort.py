"""ONNX Runtime: the graphs of a bundle as two inference sessions over one weights file.

The step graph of a single sequence and the prompt graph run on the mapped weights, without
pre-packing. Measured on a 2 GB fp32 stack of 2048 × 6144 matmuls, two AVX-512 cores, onnxruntime
1.31.1 (MB of private memory for both sessions, seconds to load them, ms a call):

    pre-packed    private   load   step, 1 row   step, 4 rows   prompt, 512 rows   prompt, 17 rows
    both             3898   12.8           172            174               3338               236
    prompt only      1978    3.9           175            613               3396               248
    step only        1978    6.4           228            285               4025               595
    none               58   0.02           155            515               4082               599

Pre-packing copies the weights once a session and cannot be shared between sessions through the
Python API; without it both map the same pages of the file. One row is as fast on mapped weights,
several rows are not: so the step graph is pre-packed for batches only, where the copy fits, and loading
costs nothing that a prompt of 2,000 tokens would not have to earn back first. Weights in int8 or int4
(`ort_codes`) are an exception.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from mla_runtime.backends import huge_pages
from mla_runtime.backends.base import CacheBuffers
from mla_runtime.backends.ort_buffers import BucketBuffers, SlotBuffers
from mla_runtime.backends.ort_codes import CodedWeights
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, BundleError, InputError, SessionError
from mla_runtime.manifest import PHASES, Phase
from mla_runtime.memory import memory_limit

PROVIDER = "CPUExecutionProvider"
_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
}


class OrtBackend:
    """A bundle on ONNX Runtime's CPU provider; sessions on any thread share its graphs.

    Both graphs are loaded at once, so that the files may be replaced while they are in use; the step
    graph of batches is loaded when first used, and only if the files are still the same.
    """

    name = "ort:cpu"

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        most = 4 * (os.cpu_count() or 1)  # each is started at once: thousands bring a machine to a halt
        if threads is not None and not 1 <= threads <= most:
            raise InputError(
                f"threads is {threads}; here it must be 1 to {most}, or None for the engine's choice"
            )
        try:
            import onnxruntime  # noqa: F401 - to fail here, with what to do
        except ImportError as cause:
            msg = f"backend {self.name}: onnxruntime is not installed; install onnxruntime (extra `cpu`)"
            raise BackendError(msg) from cause
        self._bundle = bundle
        self._threads = threads
        self._lock = threading.Lock()
        self._graphs: dict[tuple[Phase, bool], Any] = {}
        self._closed = False
        size = sum(entry.size for entry in bundle.manifest.files.values())
        # A second copy of the weights must leave room for the mapped ones, the cache, and others.
        limit = memory_limit()
        self._packs = limit is not None and size <= limit // 4
        self._codes = CodedWeights.of(bundle)
        # Matrices in blocks are computed from pre-packed ones only, and one graph serves both phases.
        self._single = bundle.graph("step").file == bundle.graph("prompt").file
        for phase in PHASES[:1] if self._single else PHASES:
            packed = self._single or self._codes.must_be_packed
            self._graphs[phase, packed] = self._load(phase, packed)

    @property
    def chunk(self) -> int:
        """What the bundle says: ONNX Runtime takes any number."""
        return self._bundle.chunk

    def width(self, phase: Phase, new: int) -> int:
        """Give `new`: ONNX Runtime's CPU provider takes every shape as it comes."""
        del phase
        return new

    def buffers(self, batch: int, max_rows: int) -> CacheBuffers:
        """Make the buffers of a session: bound in place for one sequence, in buckets for several."""
        self._check_open()
        kind = SlotBuffers if batch == 1 else BucketBuffers
        return kind(self, self._bundle, batch, max_rows)

    def graph(self, phase: Phase, batch: int) -> Any:
        """Give the inference session of a phase; a batch's step graph is loaded at its first use."""
        if self._single:
            phase, packed = PHASES[0], True
        else:
            packed = self._codes.must_be_packed or (phase == "step" and batch > 1 and self._packs)
        with self._lock:
            self._check_open()
            if (phase, packed) not in self._graphs:
                self._graphs[phase, packed] = self._load(phase, packed)
            return self._graphs[phase, packed]

    def close(self) -> None:
        """Free graphs and weights; whatever still wants to compute gets a `SessionError`."""
        with self._lock:
            self._closed = True
            self._graphs.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError(f"{self._bundle.path}: this model is closed; open the bundle again")

    def _load(self, phase: Phase, packed: bool) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # A memory pattern is kept for every set of input shapes, and T changes with every step.
        options.enable_mem_pattern = False
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        more = self._codes.apply(options)
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        path = self._bundle.paths[self._bundle.graph(phase).file]
        self._bundle.check_unchanged()
        before = huge_pages.anonymous()
        try:
            graph = onnxruntime.InferenceSession(path, options, providers=[PROVIDER], **more)
        except Exception as cause:  # onnxruntime's errors share no base class of their own
            raise BackendError(f"backend {self.name}: {path} does not load: {cause}") from cause
        self._bundle.check_unchanged()
        if PROVIDER not in (found := graph.get_providers()):
            msg = f"backend {self.name}: {path} was asked for on {PROVIDER} and loaded on {', '.join(found)}"
            raise BackendError(msg)
        self._check_signature(graph, str(path))
        if packed:
            huge_pages.move_to_huge_pages(before, graph)
        return graph

    def _check_signature(self, graph: Any, where: str) -> None:
        """Compare names and types of the graph's inputs and outputs with the manifest's tables."""
        manifest = self._bundle.manifest
        inputs = {t.name: t.dtype for t in manifest.inputs} | {t.past: t.dtype for t in manifest.cache}
        outputs = {t.name: t.dtype for t in manifest.outputs} | {t.present: t.dtype for t in manifest.cache}
        for kind, listed, found in (
            ("input", inputs, graph.get_inputs()),
            ("output", outputs, graph.get_outputs()),
        ):
            types = {tensor.name: tensor.type for tensor in found}
            for name in sorted(listed.keys() ^ types.keys()):
                place = "bundle.json but not the graph" if name in listed else "the graph but not bundle.json"
                raise BundleError(f"{where}: {kind} {name!r} is in {place}; export the bundle again")
            for name, dtype in listed.items():
                if types[name] != _TYPES[dtype]:
                    msg = (
                        f"{where}: {kind} {name!r} is {types[name]}, "
                        f"bundle.json says {dtype}; export it again"
                    )
                    raise BundleError(msg)
