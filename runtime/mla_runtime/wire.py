"""protobuf off the wire: the fields of a message, in pure Python, so that a device needs no onnx package."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of a message's fields: an unsigned integer, or the bytes of all else.

    Raises `ValueError` or `IndexError` where `data` is no message.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == DELIMITED:
            size, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - at:
            raise ValueError("a field longer than its message")
        yield tag >> 3, data[at : at + size]
        at += size


def integers(value: int | memoryview) -> Iterator[int]:
    """Yield the signed 64-bit integers of a repeated field: one alone, or many packed."""
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield _signed(number)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number longer than ten bytes")
