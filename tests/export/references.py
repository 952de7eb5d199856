"""What a page or a picture refers to outside itself, found by reading it as a browser would."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
FETCHING = {
    "src",
    "href",
    "xlink:href",
    "srcset",
    "data",
    "action",
    "formaction",
    "poster",
    "background",
    "ping",
}
FORBIDDEN = {"script", "link", "iframe", "object", "embed", "img", "image", "base", "form", "foreignobject"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: Counter[str] = Counter()
        self.meant: set[str] = set()
        self._styled = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._styled = tag == "style"
        if tag in FORBIDDEN:
            self.outside.append(f"<{tag}>")
        for key, value in attrs:
            text = value or ""
            if key == "id":
                self.ids[text] += 1
            elif key.startswith("xmlns") and text in NAMESPACES:
                continue
            elif key in ("aria-labelledby", "aria-describedby"):
                self.meant.update(text.split())
            elif key in FETCHING:
                self.outside += [] if text.startswith("#") else [f"{key}={text}"]
                self.meant.add(text[1:])
            self._check(f"{key}={text}")
            if key.startswith("on"):
                self.outside.append(f"{key}={text}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._styled = False

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        if self._styled:
            self._check(data)

    def handle_decl(self, decl: str) -> None:
        if decl.lower() != "doctype html":
            self.outside.append(decl)

    def _check(self, text: str) -> None:
        self.meant.update(re.findall(r"url\(#([^)]+)\)", text))
        self.outside += re.findall(r"url\((?!#)[^)]*|@import.*|\w+://\S+|javascript:.*|\bdata:.*", text)


def read(text: str) -> _Reader:
    """Read a page or an SVG file: `outside` is all that it would fetch or run, `ids` are its ids."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


def assert_self_contained(text: str) -> None:
    """Refuse what refers to anything outside, has an id twice, or means one that is not there."""
    found = read(text)
    assert found.outside == []
    assert [name for name, times in found.ids.items() if times > 1] == []
    assert found.meant <= set(found.ids)
