"""Compiling a bundle's engines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_runtime.bundle import Bundle
from mla_runtime.engines import log
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.interrupts import held_back
from mla_runtime.engines.network import Network, parse
from mla_runtime.engines.onnx_nodes import read
from mla_runtime.engines.profiles import add_profile
from mla_runtime.engines.progress import OnProgress, monitor
from mla_runtime.engines.record import Built, EngineFile, Limits, Outside
from mla_runtime.engines.timing import kept_timings
from mla_runtime.errors import EngineError
from mla_runtime.manifest import PHASES, Phase


def build(
    bundle: Bundle,
    library: Library,
    cards: Sequence[str],
    limits: Limits,
    folder: Path,
    on_progress: OnProgress | None = None,
) -> Built:
    """Compile the engines of `bundle` for `cards` into the folder `folder`, and give their record.

    There is an engine a phase; a network that holds weights in int4 and repeats nothing is one engine with
    a profile a phase, so that it holds them once. Raises `EngineError` for what TensorRT does not build.
    """
    _check_target(bundle)
    started = time.monotonic()
    job = _Job(bundle, library, tuple(cards), limits, folder, on_progress)
    engines, outside = job.all()
    seconds = round(time.monotonic() - started, 1)
    version, sha256 = library.version, str(bundle.raw["sha256"])
    return Built(
        library.flavour.name, version, tuple(cards), sha256, limits, tuple(engines), outside, seconds
    )


def _check_target(bundle: Bundle) -> None:
    target = bundle.manifest.target
    if target != "portable":
        msg = f"{bundle.path}: its graphs are for {target}; TensorRT builds those of --target portable, "
        raise EngineError(msg + "so export the checkpoint once more with that")


@dataclass(frozen=True, slots=True)
class _Job:
    bundle: Bundle
    library: Library
    cards: tuple[str, ...]
    limits: Limits
    folder: Path
    on_progress: OnProgress | None

    def all(self) -> tuple[list[EngineFile], tuple[Outside, ...]]:
        """Compile every engine; give also all weights outside of them, each once."""
        trt = self.library.trt
        builder = trt.Builder(log.logger(trt))
        step = parse(self.bundle, "step", self.library, builder)
        if step.holds_int4 and not self._loops("prompt"):
            return [self._compile(builder, step, PHASES)], step.outside
        made, outside = [self._compile(builder, step, ("step",))], dict.fromkeys(step.outside)
        del step  # the parsed weights of one graph at a time
        prompt = parse(self.bundle, "prompt", self.library, builder)
        made.append(self._compile(builder, prompt, ("prompt",)))
        return made, tuple(outside | dict.fromkeys(prompt.outside))

    def _loops(self, phase: Phase) -> bool:
        """Whether a graph goes through experts one by one: then a step has a graph of its own."""
        nodes = read(self.bundle.paths[self.bundle.graph(phase).file]).graph.nodes
        return any(node.operator == "Loop" for node in nodes)

    def _compile(self, builder: Any, parsed: Network, phases: Sequence[Phase]) -> EngineFile:
        trt = self.library.trt
        config = self._config(builder)
        if "step" in phases:
            self.library.allow_recording(config)
        for phase in phases:
            add_profile(builder, config, self.bundle, phase, self.limits)
        with log.errors(trt) as errors, kept_timings(self.library, config), held_back() as interrupts:
            config.progress_monitor = listener = monitor(trt, self._told(phases), interrupts)
            plan = builder.build_serialized_network(parsed.network, config)
        if listener.raised is not None:
            raise listener.raised
        if plan is None:
            said = errors[-1] if errors else "nothing more"
            msg = (
                f"{self.bundle.path}: {self.library.flavour.name} {self.library.version} built no engine of "
            )
            instead = "; take a smaller batch, context or chunk" if "OutOfMemory" in said else ""
            raise EngineError(
                f"{msg}the {' and '.join(phases)} graph for {', '.join(self.cards)}: {said}{instead}"
            )
        data = memoryview(plan)
        file = f"{'-'.join(phases)}.engine"
        (self.folder / file).write_bytes(data)
        profiles = {phase: place for place, phase in enumerate(phases)}
        return EngineFile(file, data.nbytes, hashlib.sha256(data).hexdigest(), profiles)

    def _told(self, phases: Sequence[Phase]) -> OnProgress:
        """Give what is told of a build: which engine it is at."""
        name = f"{' and '.join(phases)} engine"

        def told(label: str, done: int, total: int) -> None:
            del label  # TensorRT's name of a build
            if self.on_progress is not None:
                self.on_progress(name, done, total)

        return told

    def _config(self, builder: Any) -> Any:
        config = builder.create_builder_config()
        self.library.set_cards(config, self.cards)
        # float32 means float32: TF32 keeps 10 bits of a factor's 23
        config.clear_flag(self.library.trt.BuilderFlag.TF32)
        self.library.shrink_activations(config)
        return config
