"""One broken safetensors file a rule of the format, each with its exact error."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mla_export.safetensors_file import DTYPE_BYTES, read_header
from mla_runtime.errors import CheckpointError

DTYPES = ", ".join(DTYPE_BYTES)


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def packed(header: object, data: int) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def refusal(tmp_path: Path, content: bytes) -> str:
    """Give the error of a file with this content, without the path in front."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_a_whole_file_is_read_with_padding_metadata_and_empty_tensors(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": entry(8, 16), "a": entry(0, 8), "none": entry(8, 8)}
    raw = json.dumps(header).encode() + b"   "
    file = tmp_path / "model.safetensors"
    file.write_bytes(packed(raw, 16))
    tensors = read_header(file)
    start = 8 + len(raw)
    assert {name: (info.offset - start, info.nbytes, info.shape) for name, info in tensors.items()} == {
        "a": (0, 8, (2,)),
        "b": (8, 8, (2,)),
        "none": (8, 0, (0,)),
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is 0 bytes long, too short for a safetensors file; download it again"),
        (b"1234567", "is 7 bytes long, too short for a safetensors file; download it again"),
        (
            struct.pack("<Q", 100_000_001) + b"{}",
            "its header claims 100000001 bytes, above the limit of 100000000",
        ),
        (
            struct.pack("<Q", 2**64 - 1) + b"{}",
            f"its header claims {2**64 - 1} bytes, above the limit of 100000000",
        ),
        (
            struct.pack("<Q", 3) + b"{}",
            "its header claims 3 bytes, but only 2 follow; download it again",
        ),
        (packed(b"", 0), "its header does not start with '{'; is this a safetensors file?"),
        (packed(b" {}", 0), "its header does not start with '{'; is this a safetensors file?"),
        (packed(b"[1]", 0), "its header does not start with '{'; is this a safetensors file?"),
    ],
)
def test_a_broken_start_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, content) == problem


def test_headers_that_are_not_json_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, packed(b"{", 0)).startswith("header: not valid JSON (Expecting property name")
    assert refusal(tmp_path, packed(b'{"\xff":1}', 0)).startswith("header: not valid JSON ('utf-8' codec")
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert refusal(tmp_path, packed(deep, 0)).startswith("header: not valid JSON (")
    digits = b'{"a":' + b"9" * 10_000 + b"}"
    assert refusal(tmp_path, packed(digits, 0)).startswith("header: not valid JSON (Exceeds the limit")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b'{"a":1,"a":2}', "header: not valid JSON (the key 'a' is given twice); get the file again"),
        (b'{"a":NaN}', "header: not valid JSON (NaN is not a JSON number); get the file again"),
        (b'{"a":-Infinity}', "header: not valid JSON (-Infinity is not a JSON number); get the file again"),
        (b'{"__metadata__":[]}', "__metadata__ must map strings to strings"),
        (b'{"__metadata__":{"a":1}}', "__metadata__ must map strings to strings"),
    ],
)
def test_json_that_can_be_read_in_two_ways_is_refused(raw: bytes, problem: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, packed(raw, 0)) == problem


def test_more_than_a_million_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mla_export.safetensors_file.MAX_TENSORS", 2)
    header = {name: entry(0, 0) for name in "abc"}
    assert refusal(tmp_path, packed(header, 0)) == "has 3 tensors, above the limit of 2"


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (1, "must have exactly dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [1]}, "must have exactly dtype, shape and data_offsets"),
        ({**entry(0, 4), "extra": 0}, "must have exactly dtype, shape and data_offsets"),
        (entry(0, 4, dtype="F31"), f"is of dtype 'F31'; known are {DTYPES}"),
        (entry(0, 4, dtype=["F32"]), f"is of dtype ['F32']; known are {DTYPES}"),
        (entry(0, 4, shape="1"), "has shape '1', not a list of sizes"),
        (entry(0, 4, shape=[-1]), "has shape [-1], not a list of sizes"),
        (entry(0, 4, shape=[1.0]), "has shape [1.0], not a list of sizes"),
        (entry(0, 4, shape=[True]), "has shape [True], not a list of sizes"),
        (entry(0, 4, shape=[1] * 9), "has 9 dimensions, above the limit of 8"),
        ({**entry(0, 4), "data_offsets": [4, 0]}, "has data_offsets [4, 0], not a begin and an end"),
        ({**entry(0, 4), "data_offsets": [0]}, "has data_offsets [0], not a begin and an end"),
        ({**entry(0, 4), "data_offsets": [-4, 0]}, "has data_offsets [-4, 0], not a begin and an end"),
        ({**entry(0, 4), "data_offsets": [0.0, 4]}, "has data_offsets [0.0, 4], not a begin and an end"),
        (entry(0, 4, shape=[2]), "has 4 bytes; F32 [2] takes 8"),
        (entry(0, 4, shape=[2**40, 2**40]), f"has 4 bytes; F32 [{2**40}, {2**40}] takes {2**82}"),
        (entry(0, 4, dtype="BF16"), "has 4 bytes; BF16 [1] takes 2"),
    ],
)
def test_a_broken_tensor_entry_is_refused(tensor: object, problem: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, packed({"w": tensor}, 4)) == f"tensor 'w' {problem}"


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor 'b' overlaps 'a'"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "tensor 'b' overlaps 'a'"),
        ({"a": entry(4, 8)}, 8, "4 bytes between the header and 'a' belong to no tensor"),
        ({"a": entry(0, 4), "b": entry(12, 16)}, 16, "8 bytes between 'a' and 'b' belong to no tensor"),
        ({"a": entry(0, 4)}, 5, "1 bytes after the last tensor belong to no tensor"),
        ({}, 3, "3 bytes after the last tensor belong to no tensor"),
    ],
)
def test_overlaps_holes_and_trailing_bytes_are_refused(
    header: dict[str, Any], data: int, problem: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, packed(header, data)) == problem


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    content = packed({"a": entry(0, 8)}, 7)
    assert refusal(tmp_path, content) == (
        f"its tensors end at byte {len(content) + 1}, but the file at {len(content)}; it was cut short: "
        "download it again"
    )


def test_a_file_that_cannot_be_read_or_ends_early_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(caught.value) == f"{file}: cannot be read: No such file or directory"
    # the size that the folder tells is more than reading gives: the file is being replaced
    file.write_bytes(struct.pack("<Q", 9) + b"{}")
    monkeypatch.setattr(Path, "stat", lambda self, **_: SimpleNamespace(st_size=100))
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(caught.value) == f"{file}: ended inside its header; download it again"


VALID = packed({"a": entry(0, 8), "b": entry(8, 12)}, 12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BYTES, "F4", ""]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | JSON,
    }
)


def read_or_refuse(tmp_path: Path, content: bytes) -> None:
    """A file is either read, and then fills its bytes exactly once, or refused with CheckpointError."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    try:
        tensors = read_header(file)
    except CheckpointError:
        return
    covered = 8 + int.from_bytes(content[:8], "little")
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        assert info.offset == covered
        covered += info.nbytes
    assert covered == len(content)


# tmp_path is one folder for all examples, which is what is wanted: each overwrites its file
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(content=st.binary(max_size=64))
@example(content=VALID)
def test_any_bytes_are_read_or_refused(content: bytes, tmp_path: Path) -> None:
    read_or_refuse(tmp_path, content)


@FUZZ
@given(raw=st.binary(max_size=64), data=st.integers(0, 16))
def test_any_header_of_the_right_length_is_read_or_refused(raw: bytes, data: int, tmp_path: Path) -> None:
    read_or_refuse(tmp_path, packed(b"{" + raw, data))


@FUZZ
@given(header=st.dictionaries(st.text(max_size=4), TENSOR | JSON, max_size=3), data=st.integers(0, 16))
def test_any_json_header_is_read_or_refused(header: dict[str, Any], data: int, tmp_path: Path) -> None:
    read_or_refuse(tmp_path, packed(header, data))


@FUZZ
@given(position=st.integers(0, len(VALID) - 1), bit=st.integers(0, 7), cut=st.integers(0, 3))
def test_any_flipped_bit_or_cut_is_read_or_refused(position: int, bit: int, cut: int, tmp_path: Path) -> None:
    content = bytearray(VALID)
    content[position] ^= 1 << bit
    read_or_refuse(tmp_path, bytes(content[: len(content) - cut]))
