"""What arguments of the command line are made of: numbers with a least, and lists of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable


def number(kind: type, low: float, what: str) -> Callable[[str], float]:
    """Give an argparse type: a number of `kind` that is at least `low`."""

    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


COUNT = number(int, 1, "a whole number of at least 1")
INDEX = number(int, 0, "a whole number of at least 0")
AMOUNT = number(float, 0, "a number of at least 0")


def integers(text: str) -> list[int]:
    """Parse `1,2,3` (an argparse type)."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 1,2,3") from None


def contexts(text: str) -> list[int]:
    """Parse `4k,32k,1000`: tokens, k being 1024 of them (an argparse type)."""
    found = [re.fullmatch(r"([1-9]\d{0,9})(k?)", part.strip().lower()) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers of tokens like 4k,32k,1000")
    return [int(match[1]) * (1024 if match[2] else 1) for match in found if match]


def names(text: str) -> list[str]:
    """Parse `one,two` (an argparse type)."""
    return [part.strip() for part in text.split(",")]
