"""Where everything of a session lies in its one piece of device memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mla_runtime.backends import kernels
from mla_runtime.backends.places import Places
from mla_runtime.bundle import Bundle
from mla_runtime.manifest import CacheTensor, Dim, Tensor
from mla_runtime.top import MOST

_BOUND = 8 + 4  # bytes of an id and its logit
_FLAG = 4
_KEY = 8


@dataclass(frozen=True, slots=True)
class Sizes:
    """B, the most rows of a sequence, the widest S of a prompt, V."""

    batch: int
    rows: int
    width: int
    vocab: int


@dataclass(frozen=True, slots=True)
class Answer:
    """How the best logits lie together: ids [B, k], logits [B, k], a flag [B] where one was not finite."""

    batch: int
    count: int

    @property
    def logits(self) -> int:
        """Offset of the logits."""
        return 8 * self.batch * self.count

    @property
    def flags(self) -> int:
        """Offset of the flags."""
        return _BOUND * self.batch * self.count

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.flags + _FLAG * self.batch


@dataclass(frozen=True, slots=True)
class SessionPlaces:
    """Offsets: of the cache tensors and their new rows in order, of inputs, logits, and what is made of them.

    The cache comes first and takes `cache_bytes`; `inputs` takes `input_bytes` at the widest prompt.
    """

    cache: tuple[int, ...]
    cache_bytes: int
    fresh: tuple[int, ...]
    inputs: int
    input_bytes: int
    logits: int
    answer: int
    keys: tuple[int, int]
    table: int
    activations: int
    nbytes: int


def session_places(bundle: Bundle, sizes: Sizes, activation_bytes: int) -> SessionPlaces:
    """Lay out a session's memory."""
    places = Places()
    batch, tensors = sizes.batch, bundle.cache
    cache = tuple(places.take(batch * sizes.rows * t.row_bytes) for t in tensors)
    cache_bytes = places.size
    fresh = tuple(places.take(batch * sizes.width * t.row_bytes) for t in tensors)
    input_bytes = input_places(bundle.manifest.inputs, batch, sizes.width)[1]
    most = min(MOST, sizes.vocab)
    first = kernels.windows(sizes.vocab)
    return SessionPlaces(
        cache=cache,
        cache_bytes=cache_bytes,
        fresh=fresh,
        inputs=places.take(input_bytes),
        input_bytes=input_bytes,
        logits=places.take(4 * batch * sizes.vocab),
        answer=places.take(Answer(batch, most).nbytes),
        keys=(
            places.take(_KEY * batch * first * most),
            places.take(_KEY * batch * kernels.windows(first * most) * most),
        ),
        table=places.take(kernels.TABLE_ENTRY * len(tensors)),
        activations=places.take(activation_bytes),
        nbytes=places.size,
    )


def input_places(inputs: Sequence[Tensor], batch: int, width: int) -> tuple[dict[str, int], int]:
    """Give the offset of each int64 input at S = `width`, and the bytes of all: one copy brings them in."""
    places = Places()
    shapes = input_shapes(inputs, batch, width)
    return {name: places.take(8 * int(np.prod(shape))) for name, shape in shapes.items()}, places.size


def input_shapes(inputs: Sequence[Tensor], batch: int, width: int) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the inputs but for the cache. N is always B: shapes that repeat can be recorded."""
    sizes: Mapping[Dim, int] = {"B": batch, "S": width, "N": batch}
    return {t.name: tuple(sizes[d] if isinstance(d, str) else d for d in t.shape) for t in inputs}


def cache_shapes(tensors: Sequence[CacheTensor], batch: int, rows: int) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the cache shown at T = `rows`."""
    return {t.past: (batch, rows, *t.row) for t in tensors}
