"""What a bundle's formats cost on a text: how it foretells each token, beside the checkpoint in fp32.

The text is cut into windows, each of which starts anew. At every position the bundle's logits are held
against those of Hugging Face's layers in float32: KL divergence, perplexity, the most likely token. In a
mixture of experts each figure is there twice: with routing free, and with every gate's choice taken from the
checkpoint, which tells the error of the numbers from that of experts chosen otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mla_export import progress
from mla_export.judge import log_softmax
from mla_export.passage import Passage
from mla_export.probe import Probe, Reading
from mla_export.reference import Reference
from mla_export.rounding import Rounded
from mla_export.tally import Figures, Tally
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BundleError, InputError
from mla_runtime.text import load_text

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

WINDOW = 2048
# logits of as many elements are compared at a time: 128 MB in float64, and a few copies of them
_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class Quality:
    """What a text of `tokens` positions in windows of up to `window` showed.

    `free` and `pinned` have all positions first, and then those of each stretch of a window. `pinned` and
    `rerouted`, the share of tokens of which any gate chose other experts than the checkpoint's, are None
    without experts.
    """

    tokens: int
    window: int
    free: tuple[Figures, ...]
    pinned: tuple[Figures, ...] | None
    rerouted: float | None


@dataclass(frozen=True, slots=True)
class Teacher:
    """The checkpoint's side of a text, which serves any number of its bundles.

    A window is the tokens that are read, and one more: the last one to foretell.
    """

    windows: tuple[tuple[int, ...], ...]
    passage: Passage

    @classmethod
    def of(cls, reference: Reference, windows: Sequence[Sequence[int]]) -> Teacher:
        """Read the windows through the reference, layer by layer; their hidden states are kept."""
        read = [window[:-1] for window in windows]
        passages = reference.passages(read, ["float32"], choices_only=True)
        return cls(tuple(map(tuple, windows)), passages["float32"])

    @property
    def tokens(self) -> int:
        """How many positions all windows have."""
        return sum(len(window) - 1 for window in self.windows)

    def choices(self, window: int) -> dict[int, Array]:
        """Give for each layer with a gate the experts [S, k] that its tokens went to, in ascending order."""
        layers = enumerate(self.passage.routing[window])
        return {layer: routing.chosen for layer, routing in layers if routing is not None}


def text_windows(bundle: Bundle, text: str | Path, most: int | None = None) -> list[list[int]]:
    """Cut the file `text` into windows of the bundle's tokens: of up to `WINDOW`, or of its context.

    Each begins with the model's beginning-of-sequence token where it has one. `most` bounds the positions of
    all (default: the whole text). Raises InputError for a text that cannot be read or has nothing to
    foretell, or a bundle without a tokenizer, and BackendError where its package is missing.
    """
    if (tokenizer := load_text(bundle)) is None:
        raise InputError(f"{bundle.path}: the bundle has no tokenizer, so that no text can be read with it")
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"{text}: cannot be read as a text in UTF-8 ({cause}); give another") from cause
    ids, bos = tokenizer.encode(content), bundle.text.bos_id
    if bos is not None and ids[:1] == [bos]:
        ids = ids[1:]
    return cut(ids, min(WINDOW, bundle.model.max_context), bos, most, str(text))


def cut(ids: Sequence[int], size: int, bos: int | None, most: int | None, where: str) -> list[list[int]]:
    """Cut ids into windows that read up to `size` tokens and foretell every id once, but the very first.

    With `bos` that one too: it begins each window, in place of the token before.
    """
    stream = list(ids) if bos is None else [bos, *ids]
    end = len(stream) - 1 if most is None else min(most, len(stream) - 1)
    if end < 1:
        raise InputError(f"{where}: has {len(ids)} tokens, and none to foretell; give a longer text")
    windows = [stream[start : min(start + size, end) + 1] for start in range(0, end, size)]
    return windows if bos is None else [[bos, *window[1:]] for window in windows]


@dataclass(frozen=True, slots=True)
class Observed:
    """What was found at each of `tokens` positions; `pinned` and `rerouted` are None without experts."""

    tokens: int
    window: int
    free: Tally
    pinned: Tally | None
    rerouted: float | None

    @property
    def quality(self) -> Quality:
        """Sum it up."""
        pinned = None if self.pinned is None else self.pinned.figures()
        return Quality(self.tokens, self.window, self.free.figures(), pinned, self.rerouted)


def measure(bundle: Bundle, teacher: Teacher, threads: int | None = None) -> Quality:
    """Sum up what `observe` finds."""
    return observe(bundle, teacher, threads).quality


def observe(bundle: Bundle, teacher: Teacher, threads: int | None = None) -> Observed:
    """Read the teacher's windows with a bundle whose files were hashed, on ONNX Runtime's CPU provider.

    `threads` are those of the engine (None: its own choice). Raises BackendError for a graph that does not
    run, BundleError for one whose gates are not where the checkpoint's are, NumericsError for logits that are
    not finite.
    """
    probe = Probe(bundle, threads)
    if probe.gates != (gates := tuple(teacher.choices(0))):
        raise BundleError(
            f"{bundle.path}: gates in layers {list(probe.gates)}, the checkpoint's are in {list(gates)}; "
            "export it again"
        )
    tallies = [Tally(), Tally()] if gates else [Tally()]
    rerouted = 0
    with progress.task("bundle on the text", teacher.tokens) as advance:
        for index, start, got, moved in _read(probe, teacher):
            rerouted += moved
            for at, want, targets in _wanted(teacher, index, start, start + len(got[0])):
                for tally, logits in zip(tallies, got, strict=True):
                    tally.add(logits[at.start - start : at.stop - start], want, targets, at)
            advance(len(got[0]))
    return Observed(
        tokens=teacher.tokens,
        window=max(len(window) - 1 for window in teacher.windows),
        free=tallies[0],
        pinned=tallies[1] if gates else None,
        rerouted=rerouted / teacher.tokens if gates else None,
    )


def observe_rounded(rounded: Rounded, teacher: Teacher) -> Tally:
    """Read the teacher's windows with Hugging Face's layers, rounded to nearest: `rounding.counterpart`."""
    tally = Tally()
    read = [window[:-1] for window in teacher.windows]
    passage = teacher.passage.reference.passages(read, [rounded], choices_only=True)[rounded]
    for index, window in enumerate(read):
        for at, want, targets in _wanted(teacher, index, 0, len(window)):
            tally.add(passage.logits(index, at), want, targets, at)
    return tally


def _read(probe: Probe, teacher: Teacher) -> Iterator[tuple[int, int, list[Array], int]]:
    """Read all windows in the bundle's chunks; give window, start, logits, and how many were rerouted.

    The logits [S, V] are those with routing free, and with routing pinned where there are gates.
    """
    for index, window in enumerate(teacher.windows):
        choices = list(teacher.choices(index).values())
        ids = window[:-1]
        free, pinned = Reading(probe, len(ids)), Reading(probe, len(ids))
        for start in range(0, len(ids), probe.bundle.chunk):
            part = ids[start : start + probe.bundle.chunk]
            wanted = [chosen[start : start + len(part)] for chosen in choices]
            logits, found = free(part)
            if wanted:
                yield index, start, [logits, pinned(part, wanted)[0]], _rerouted(found, wanted)
            else:
                yield index, start, [logits], 0


def _rerouted(found: Sequence[Array], wanted: Sequence[Array]) -> int:
    """Count the tokens of which any gate chose other experts than it should."""
    pairs = zip(found, wanted, strict=True)
    differs = [(np.sort(ids, axis=-1) != chosen).any(axis=-1) for ids, chosen in pairs]
    return int(np.logical_or.reduce(differs).sum())


def _wanted(teacher: Teacher, window: int, start: int, stop: int) -> Iterator[tuple[range, Array, Array]]:
    """Give some positions at a time, the teacher's log probabilities [n, V] there, and its targets [n]."""
    rows = max(1, _ELEMENTS // teacher.passage.reference.geometry.vocab_size)
    for first in range(start, stop, rows):
        at = range(first, min(first + rows, stop))
        targets = np.array(teacher.windows[window][at.start + 1 : at.stop + 1])
        yield at, log_softmax(teacher.passage.logits(window, at)), targets
