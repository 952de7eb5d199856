"""Generation: a session, a sampler and text put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from mla_runtime.errors import InputError
from mla_runtime.sampling import Sampler, Sampling
from mla_runtime.session import Session
from mla_runtime.streaming import Decode, Detokenizer, StopStrings
from mla_runtime.top import Ids, Logits

Reason = Literal["stop", "length", "capacity"]


@dataclass(frozen=True, slots=True)
class Token:
    """A generated id and the text that became whole with it: "" inside a character or without tokenizer."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: after `max_tokens`, at an id of `stop_ids`, or where one of the `stop` strings begins."""

    max_tokens: int
    stop_ids: frozenset[int]
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated for one prompt, and why it ended."""

    ids: tuple[int, ...]
    text: str
    reason: Reason


class Row:
    """One sequence on its way: chooses ids from logits and says when, and why, it is over.

    A stop id is the last token of its row; its text is what was still held back.
    """

    def __init__(
        self, prompt: Sequence[int], sampling: Sampling, limits: Limits, capacity: int, decode: Decode | None
    ) -> None:
        if limits.stop and decode is None:
            raise InputError("stop strings need a tokenizer, which this bundle has not; give stop ids")
        self.ids: list[int] = []
        self.text = ""
        self.reason: Reason | None = None
        self._seen = set(prompt)
        self._sampler = Sampler(sampling)
        self._limits = limits
        # The last token needs no row of the cache, since nothing is computed after it.
        self._room = capacity - len(prompt) + 1
        self._words = None if decode is None else Detokenizer(decode, prompt)
        self._stops = StopStrings(limits.stop)

    @property
    def in_words(self) -> bool:
        """Whether there is a tokenizer to make text of the ids."""
        return self._words is not None

    def needs(self, vocab: int) -> int | None:
        """Give how many of the best logits `take` has to have, or None for all `vocab` of them."""
        return self._sampler.needs(vocab)

    def take(self, logits: Logits, ids: Ids | None = None) -> Token:
        """Choose the next id from `logits` [V]; sets `reason` where it is the last.

        With `ids`, `logits` are those of the best ids only, best first.
        """
        chosen = self._sampler.pick(logits, self._seen, ids)
        self._seen.add(chosen)
        self.ids.append(chosen)
        if chosen in self._limits.stop_ids:
            self.reason = "stop"
        elif len(self.ids) >= self._limits.max_tokens:
            self.reason = "length"
        elif len(self.ids) >= self._room:
            self.reason = "capacity"
        text = self._new_text(chosen)
        self.text += text
        return Token(chosen, text)

    def completion(self) -> Completion:
        """Give what was generated. The row must be over."""
        if self.reason is None:
            raise InputError("this sequence is not over yet; take tokens until it has a reason")
        return Completion(tuple(self.ids), self.text, self.reason)

    def _new_text(self, chosen: int) -> str:
        if self._words is None:
            return ""
        whole = "" if chosen in self._limits.stop_ids else self._words.push(chosen)
        if self.reason is not None:
            whole += self._words.flush()
        text, met = self._stops.push(whole)
        if met:
            self.reason = "stop"
        elif self.reason is not None:
            text += self._stops.flush()
        return text


class Stream(Iterator[Token]):
    """Tokens of one prompt as they come; `reason` says why they ended.

    The session is opened by the first `next` and freed at the end, by `close`, or by leaving the
    `with` block. It belongs to the thread that takes the first token.
    """

    def __init__(self, open_session: Callable[[], Session], prompt: Sequence[int], row: Row) -> None:
        self._open_session = open_session
        self._prompt = list(prompt)
        self._row = row
        self._session: Session | None = None
        self._closed = False

    @property
    def reason(self) -> Reason | None:
        """`stop`, `length` or `capacity` once the stream is over, None before and after an early `close`."""
        return self._row.reason

    @property
    def in_words(self) -> bool:
        """Whether tokens have text: the bundle has a tokenizer, and the package for it is installed."""
        return self._row.in_words

    @property
    def ids(self) -> list[int]:
        """The ids so far."""
        return list(self._row.ids)

    @property
    def text(self) -> str:
        """The text so far."""
        return self._row.text

    def __next__(self) -> Token:
        if self._closed or self._row.reason is not None:
            raise StopIteration
        try:
            if self._session is None:
                self._session = self._open_session()
                (choice,) = _prefill(self._session, [self._prompt], [self._row])
            else:
                (choice,) = _step(self._session, [self._row])
            token = self._row.take(*choice)
        except BaseException:
            self.close()
            raise
        if self._row.reason is not None:
            self.close()
        return token

    def close(self) -> None:
        """End the stream and free its session. Closing twice is fine."""
        if self._session is not None:
            self._session.close()
        self._closed = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def complete(session: Session, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Completion]:
    """Run a batch to its end in an empty session: rows that are over get no more tokens."""
    for row, choice in zip(rows, _prefill(session, prompts, rows), strict=True):
        row.take(*choice)
    while any(row.reason is None for row in rows):
        for row, choice in zip(rows, _step(session, rows), strict=True):
            if row.reason is None:
                row.take(*choice)
    return [row.completion() for row in rows]


# What a row chooses from: logits, and their ids where they are not of the whole vocabulary.
_Choice = tuple[Logits, Ids | None]


def _prefill(session: Session, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[_Choice]:
    count = _needed(session, rows)
    if count is None:
        return [(line, None) for line in session.prefill(prompts)]
    top = session.prefill_top(prompts, count)
    return list(zip(top.logits, top.ids, strict=True))


def _step(session: Session, rows: Sequence[Row]) -> list[_Choice]:
    given = [row.ids[-1] if row.reason is None else None for row in rows]
    count = _needed(session, rows)
    if count is None:
        return [(line, None) for line in session.step(given)]
    top = session.step_top(given, count)
    return list(zip(top.logits, top.ids, strict=True))


def _needed(session: Session, rows: Sequence[Row]) -> int | None:
    """Give how many of the best logits are enough for every row, or None for all."""
    counts = [row.needs(session.vocab) for row in rows]
    return None if None in counts else max(filter(None, counts))
