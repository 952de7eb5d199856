"""Text as it grows: whole characters only, and stop strings found across the borders of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mla_runtime.errors import InputError

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_HELD = 8
Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns ids into text piece by piece; the pieces joined are the text of all ids decoded at once.

    A character may need up to four byte tokens, so text that ends in a replacement character is held
    until more ids complete it. `context` are the ids before the first one: they are not repeated.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(context[-_HELD:])
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        """Add an id; give the text that became whole, perhaps none."""
        self._ids.append(token)
        text = self._decode_new(len(self._ids))
        if not text.endswith(_BROKEN):
            return self._take(len(self._ids), text)
        if len(self._ids) - self._read > _HELD:
            return self._take_broken(text)
        return ""

    def flush(self) -> str:
        """Give what is held, broken characters and all, as no id will follow."""
        return self._take(len(self._ids), self._decode_new(len(self._ids)))

    def _decode_new(self, end: int) -> str:
        # Decoded behind the ids before, since some tokenizers give a first token no leading space.
        return self._decode(self._ids[:end])[len(self._decode(self._ids[: self._read])) :]

    def _take_broken(self, text: str) -> str:
        """Give up on bytes that are no character; the last three may still begin one."""
        for end in range(len(self._ids) - 3, len(self._ids)):
            head = self._decode_new(end)
            if head + self._decode(self._ids[end:]) == text:
                return self._take(end, head)
        return ""

    def _take(self, end: int, text: str) -> str:
        if text:
            end -= self._read
            del self._ids[: self._read]
            self._read = end
        return text


class StopStrings:
    """Finds the first of some strings in growing text, and holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise InputError("a stop string is empty; leave it out or give at least one character")
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; give what may be shown and whether a stop string was met, which is not shown itself."""
        self._held += text
        # The stop that is complete first wins, then the longer one: so token borders change nothing.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)[1]], ""
            return shown, True
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def flush(self) -> str:
        """Give what was held back, as nothing will follow."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Give the length of the longest end of the held text that begins `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
