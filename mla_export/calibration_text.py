"""The text that weights are calibrated with, as windows of token ids."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mla_export.checkpoint import TOKENIZER
from mla_export.extras import need
from mla_export.text_files import TextFiles
from mla_runtime.errors import CheckpointError, InputError
from mla_runtime.manifest import Calibration

DEFAULT_TOKENS = 32768
FEWEST_TOKENS = 128
WINDOW = 2048  # tokens at most that attend to each other
# Bytes of a file: some hundred times what the tokens above take.
_LIMIT = 16_000_000


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Windows of token ids, and what a bundle says of where they came from."""

    windows: tuple[tuple[int, ...], ...]
    entry: Calibration


def read_calibration(
    path: str | Path, tokens: int, text: TextFiles, vocab_size: int, max_context: int
) -> CalibrationText:
    """Take windows of together `tokens` from a file: UTF-8 text, or `.json`, a list of rows of token ids.

    A text goes through the checkpoint's own tokenizer, `text`, and is cut into windows of one length, at most
    `WINDOW` and the context; the rest at its end is left out. Rows of ids are cut each for itself. Windows
    are taken at even distances, all of them where the file has fewer.

    Raises InputError for a file that cannot be read, is no such thing, or holds less than a window, and
    BackendError naming packages that are missing.
    """
    is_text = Path(path).suffix != ".json"
    need("transformers", *(["tokenizers"] if is_text else []))
    content = _content(Path(path))
    if tokens < FEWEST_TOKENS:
        raise InputError(f"{tokens} tokens to calibrate with: give at least {FEWEST_TOKENS}")
    length = min(WINDOW, max_context, tokens)
    if is_text:
        windows = _of_text(content, path, text, length)
    else:
        windows = _of_rows(content, path, vocab_size, length)
    found = sum(map(len, windows))
    count = max(1, round(len(windows) * min(1.0, tokens / found)))
    chosen = tuple(windows[i * len(windows) // count] for i in range(count))
    return CalibrationText(chosen, Calibration(hashlib.sha256(content).hexdigest(), sum(map(len, chosen))))


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as cause:
        raise InputError(
            f"{path}: cannot be read ({cause.strerror}); give a file to calibrate with"
        ) from cause
    if len(content) > _LIMIT:
        raise InputError(f"{path}: larger than the {_LIMIT} bytes that calibration reads; give a part of it")
    if not content.strip():
        raise InputError(f"{path}: is empty; give a text like those that the model is for")
    return content


def _of_text(content: bytes, path: str | Path, text: TextFiles, length: int) -> list[tuple[int, ...]]:
    """Cut a text into windows; each begins as the model's texts do."""
    from tokenizers import Tokenizer

    try:
        decoded = content.decode()
    except UnicodeDecodeError as cause:
        raise InputError(f"{path}: is not UTF-8 ({cause}); give a text, or ids in a .json file") from cause
    if TOKENIZER not in text.files:
        raise InputError(f"{path}: the checkpoint has no {TOKENIZER}; give token ids in a .json file")
    try:
        tokenizer = Tokenizer.from_str(text.files[TOKENIZER].decode())
    except Exception as cause:  # tokenizers raises bare Exception
        raise CheckpointError(f"{TOKENIZER}: does not load ({cause}); get the file again") from cause
    ids = tokenizer.encode(decoded, add_special_tokens=False).ids
    bos = text.entry["bos_id"]
    begin: list[int] = []
    if bos is not None and (text.entry["add_bos"] or tokenizer.encode("a").ids[:1] == [bos]) and length > 1:
        begin = [bos]
    own = length - len(begin)
    if len(ids) < own:
        raise _short(path, len(ids), own)
    return [(*begin, *ids[at : at + own]) for at in range(0, len(ids) - own + 1, own)]


def _of_rows(content: bytes, path: str | Path, vocab_size: int, length: int) -> list[tuple[int, ...]]:
    """Cut rows of ids into windows."""
    try:
        rows = json.loads(content.decode())
    except (ValueError, RecursionError) as cause:
        raise InputError(
            f"{path}: not valid JSON ({cause}); give rows of token ids: [[1, 2, 3], …]"
        ) from cause
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise InputError(f"{path}: is not a list of rows of token ids, as in [[1, 2, 3], …]")
    for number, row in enumerate(rows):
        for id_ in row:
            if type(id_) is not int or not 0 <= id_ < vocab_size:
                raise InputError(f"{path}: row {number} has {id_!r}, not a token id in 0 … {vocab_size - 1}")
    if (found := sum(map(len, rows))) < length:
        raise _short(path, found, length)
    return [tuple(row[at : at + length]) for row in rows for at in range(0, len(row), length)]


def _short(path: str | Path, found: int, window: int) -> InputError:
    return InputError(f"{path}: {found} tokens, less than a window of {window}; give a longer file")
