"""What is sent back holds no places: of a path only its last part is left, wherever it stands."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# a drive or a slash that no word, number or address is before, and folders up to the last part
_FOLDERS = re.compile(r"(?:\b[A-Za-z]:[\\/]|(?<![\w/.:~])/|~[\\/]|\\\\)(?:[^\s\\/:'\"(),;<>]+[\\/])*")


def known_places() -> list[Path]:
    """Give folders that may have spaces in their names, which nobody can tell from the text around them."""
    home = Path("~").expanduser()
    found = [home, Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), Path(sys.base_prefix)]
    return found + [path.resolve() for path in found]


def without_places(value: Any, places: Iterable[Path]) -> Any:
    """Give JSON without the folders of any path; `places` are taken out first, as they are written."""
    names = {str(place) for place in places}
    names |= {place.as_posix() for place in places}
    known = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return _cleaned(value, known)


def _cleaned(value: Any, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item, known) for item in value]
    if not isinstance(value, str):
        return value
    for name in known:
        value = value.replace(name, "~")
    return _FOLDERS.sub(lambda found: "" if found.group() != "/" else "/", value)
