"""One text through a session in every way that callers cut it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mla_runtime

FIRST = 35  # the position whose logits come first


def in_pieces(path: Path, ids: Sequence[int], other: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode 40 `ids` in two pieces and steps, then in a batch with `other`.

    Gives the logits from position `FIRST` on, and those of the last position in the batch.
    """
    with mla_runtime.open(path) as model:
        with model.session() as session:
            session.prefill([ids[:33]])
            found = [session.prefill([ids[33:36]])[0].copy()]
            found += [session.step([token])[0].copy() for token in ids[36:]]
        with model.session(batch=2) as session:
            session.prefill([ids[:36], other])
            for token in ids[36:]:
                batched = session.step([token, other[0]])[0].copy()
    return np.stack(found), batched
