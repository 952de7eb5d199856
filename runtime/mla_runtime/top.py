"""The best logits of a row: what choosing a token needs of a whole vocabulary, on whatever backend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Finite = npt.NDArray[np.bool_]

# On a device the candidates of a row are sorted in the memory of one block of threads, in two halves.
MOST = 1024


@dataclass(frozen=True, slots=True)
class Top:
    """The best of each row: `ids` [N, k] and their `logits` [N, k], best first, ties the lower id first."""

    ids: Ids
    logits: Logits


def top_of(logits: Logits, count: int) -> tuple[Top, Finite]:
    """Give the `count` best of each row of `logits` [N, V], and which rows are finite throughout [N].

    What is given of a row that is not finite means nothing.
    """
    # max and min carry a NaN through and meet an infinity, at one read each and no temporary.
    finite: Finite = np.isfinite(logits.max(axis=1)) & np.isfinite(logits.min(axis=1))
    ids: Ids = np.zeros((len(logits), count), dtype=np.int64)
    for place in np.flatnonzero(finite):
        ids[place] = best_places(logits[place], count)
    return Top(ids, np.take_along_axis(logits, ids, axis=1)), finite


def best_places(logits: Logits, count: int) -> Ids:
    """Give the places of the `count` largest of `logits` [V], best first, ties the lower place first."""
    if count == 1:
        return np.array([logits.argmax()], dtype=np.int64)
    threshold = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > threshold)
    ties = np.flatnonzero(logits == threshold)[: count - len(above)]
    places: Ids = np.concatenate([above, ties])
    return places[np.lexsort((places, -logits[places]))]
