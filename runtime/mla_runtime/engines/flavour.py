"""TensorRT's two flavours, and everything in which what this toolkit uses of their Python APIs differs.

`tensorrt` (10.3 and later, 11) compiles for the card it runs on, choosing kernels by timing them.
`tensorrt-rtx` compiles ahead of time for any of its cards, with no GPU at all, and ends the work on the card
when an engine is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mla_runtime.engines import log
from mla_runtime.errors import BackendError, EngineError

THIS = "this"  # as a card: the one at hand


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two; `name` is the backend's too.

    `cards` are the compute capabilities that it compiles for without having them.
    """

    name: str
    module: str
    install: str
    oldest: tuple[int, int]
    cards: tuple[str, ...]

    def load(self) -> Library:
        """Import the bindings; raises `BackendError` where they are missing or too old."""
        try:
            trt = importlib.import_module(self.module)
        except ImportError as cause:
            msg = f"backend {self.name}: the Python package {self.module} does not load ({cause})"
            raise BackendError(f"{msg}; {self.install}") from cause
        found = tuple(int(part) for part in trt.__version__.split(".")[:2])
        if found < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            raise BackendError(f"backend {self.name}: version {trt.__version__} is older than {oldest}")
        return Library(self, trt)

    def check_cards(self, cards: Sequence[str]) -> tuple[str, ...]:
        """Put cards to compile for in order; raises `EngineError` for those that this flavour has not."""
        if THIS in cards:
            if len(cards) > 1:
                raise EngineError(f"{THIS} goes with no other card; give it alone, or name all of them")
            return (THIS,)
        for card in cards:
            if card not in self.cards:
                known = ", ".join(self.cards) or "none: it compiles on the card itself"
                raise EngineError(
                    f"{self.name} does not compile for {card!r} ahead of time; it does for {known}"
                )
        return tuple(card for card in self.cards if card in cards)


RTX = Flavour(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    install="install it with: pip install 'mla-export[rtx]' (x86-64 Linux and Windows)",
    oldest=(1, 0),
    # not sm75: TensorRT-RTX 1.7 has no float32 product there, and routers are float32
    cards=("sm80", "sm86", "sm89", "sm120", "sm121"),
)
TENSORRT = Flavour(
    name="tensorrt",
    module="tensorrt",
    install="install TensorRT for your CUDA version; on a Jetson it is part of JetPack (docs/jetson.md)",
    oldest=(10, 3),
    cards=(),
)
FLAVOURS = {flavour.name: flavour for flavour in (RTX, TENSORRT)}


@dataclass(frozen=True, slots=True)
class Library:
    """A flavour's bindings, imported."""

    flavour: Flavour
    trt: Any

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self.trt.__version__)

    def network(self, builder: Any) -> Any:
        """Make an empty network whose types are those of the graph; from 11 on there is no other kind."""
        kinds = getattr(self.trt, "NetworkDefinitionCreationFlag", None)
        strongly_typed = getattr(kinds, "STRONGLY_TYPED", None)
        return builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))

    def set_cards(self, config: Any, cards: Sequence[str]) -> None:
        """Say what to compile for; only the RTX flavour has a choice."""
        if not self.flavour.cards:
            return
        kinds = self.trt.ComputeCapability
        config.num_compute_capabilities = len(cards)
        for place, card in enumerate(cards):
            kind = kinds.CURRENT if card == THIS else getattr(kinds, card.upper())
            if not config.set_compute_capability(kind, place):
                raise EngineError(f"{self.flavour.name} {self.version} refuses to compile for {card}")

    def allow_recording(self, config: Any) -> None:
        """Ask for an engine that allocates nothing when it runs, which a CUDA graph could not hold."""
        flag = getattr(self.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if flag is not None:
            config.set_flag(flag)

    def shrink_activations(self, config: Any) -> None:
        """Ask for an engine whose activations take what the shapes at hand need, not the largest ones."""
        feature = getattr(self.trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
        if feature is not None:
            config.set_preview_feature(feature, True)

    def runtime(self) -> Any:
        """Make what loads engines; it has to live as long as they do."""
        return self.trt.Runtime(log.logger(self.trt))

    def load_engine(self, runtime: Any, plan: bytes, where: str) -> Any:
        """Load a serialised engine onto the current device; raises `EngineError` for one it refuses."""
        with log.errors(self.trt) as errors:
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = errors[-1] if errors else "nothing more"
            msg = f"{where}: {self.flavour.name} {self.version} does not load this engine here: {said}"
            raise EngineError(f"{msg}; build it for this card: mla-export build")
        return engine

    def kernel_cache(self, engine: Any) -> Any:
        """Make what keeps the kernels that contexts of an engine compile, where the flavour does that."""
        if not hasattr(self.trt, "CudaGraphStrategy"):
            return None
        config = engine.create_runtime_config()
        return config.create_runtime_cache()

    def context(self, engine: Any, kernels: Any, *, fixed: bool) -> Any:
        """Make an execution context that is given its memory; `fixed` where its shapes never change.

        The RTX flavour then compiles kernels for those very shapes when they are first run; otherwise it
        begins with general ones and compiles in the background. `kernels` is the engine's `kernel_cache`, so
        that another session does not compile them again. The flavour's own recording of graphs is off: a
        step is recorded as a whole, with what comes before and after the engine.
        """
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(self.trt, "CudaGraphStrategy"):
            return engine.create_execution_context(strategy)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        kinds = self.trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if fixed else kinds.LAZY
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.DISABLED
        if kernels is not None:
            config.set_runtime_cache(kernels)
        return engine.create_execution_context(config)

    def give_memory(self, context: Any, address: int, nbytes: int) -> None:
        """Give a context the device memory of its activations."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, nbytes)
        else:  # before it was told how much there is
            context.device_memory = address

    def can_capture(self, context: Any, stream: int) -> bool:
        """Whether a context says that it can be recorded; one that does not say is tried."""
        return not hasattr(context, "is_stream_capturable") or bool(context.is_stream_capturable(stream))
