"""What engines must be to serve: of this bundle, flavour, version and GPU, and large enough."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mla_runtime.bundle import Bundle
from mla_runtime.engines.flavour import THIS, Library
from mla_runtime.engines.gpu import Gpu, gpu_at_hand
from mla_runtime.engines.record import Built, Limits
from mla_runtime.errors import EngineError
from mla_runtime.wording import counted


@dataclass(frozen=True, slots=True)
class Wanted:
    """`cards` are compute capabilities, `gpu` the one GPU's name where engines are for it alone.

    `compiled` is what the build is told: `this` for a card that the flavour does not name ahead of time.
    """

    bundle: str
    flavour: str
    version: str
    cards: tuple[str, ...]
    gpu: str | None
    limits: Limits
    compiled: tuple[str, ...]

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        library: Library,
        cards: Sequence[str],
        limits: Limits,
        gpu: Gpu | None = None,
    ) -> Wanted:
        """Resolve `this` to the GPU at hand (or to `gpu`); raises `EngineError` where there is none."""
        flavour = library.flavour
        checked = flavour.check_cards(cards)
        if not checked:
            raise EngineError(f"no cards to compile for; name some, or {THIS}")
        name: str | None = None
        compiled = checked
        if checked == (THIS,):
            gpu = gpu or gpu_at_hand()
            if gpu is None:
                instead = (
                    f"name cards to compile for: --for {','.join(flavour.cards)}"
                    if flavour.cards
                    else "it compiles on the card alone, so build there"
                )
                raise EngineError(f"{flavour.name}: no NVIDIA GPU is to be seen here; {instead}")
            checked = (gpu.card,)
            if flavour.cards:  # kernels of a capability are kernels of all its cards
                compiled = checked if gpu.card in flavour.cards else (THIS,)
            else:
                name = gpu.name
        sha256 = str(bundle.raw["sha256"])
        return cls(sha256, flavour.name, library.version, checked, name, limits, compiled)

    @property
    def name(self) -> str:
        """The name of a folder for engines that are just this, in the folder of their bundle."""
        sizes = f"{self.limits.batch}x{self.limits.context}x{self.limits.chunk}"
        parts = [self.flavour, self.version, "+".join(self.cards), sizes]
        if self.gpu is not None:
            parts.append(hashlib.sha256(self.gpu.encode()).hexdigest()[:8])
        return "-".join(parts)

    def misfit(self, built: Built) -> str | None:
        """Say why engines do not serve, as the end of a sentence about them; None where they do."""
        if built.flavour != self.flavour:
            return f"are of {built.flavour}, not of {self.flavour}"
        if built.bundle != self.bundle:
            return "were built from another bundle, or from this one before it was exported again"
        if built.version != self.version:
            return f"are of {built.flavour} {built.version}, and {self.version} is installed"
        if missing := [card for card in self.cards if card not in built.cards]:
            return f"are for {', '.join(built.cards)}, not for {', '.join(missing)}"
        if built.gpu != self.gpu:
            return f"were built on {built.gpu or 'no GPU'}, and this is {self.gpu or 'any GPU'}"
        if not built.limits.cover(self.limits):
            return f"take {_words(built.limits)}, and {_words(self.limits)} are asked for"
        return None

    def differs_in_size(self, built: Built) -> bool:
        """Whether engines fit but for the cards and the shapes that they are for."""
        return self.misfit(replace(built, cards=self.cards, limits=self.limits)) is None


def _words(limits: Limits) -> str:
    sequences = counted(limits.batch, "sequence")
    return f"{sequences} of {counted(limits.context, 'row')} in chunks of {limits.chunk:,}"
