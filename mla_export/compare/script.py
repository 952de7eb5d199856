"""What every side is made to decode: prompts, and the tokens that are forced after them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mla_export.prompts import Reader, check_room, default_prompts
from mla_runtime.errors import InputError
from mla_runtime.wording import counted

PIECES = 8  # of a text, from all over it
PIECE = 64  # tokens of each before the forced ones
FILE_CAP = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Script:
    """Prompts, and after each the tokens that are forced: None for the greedy ones of the first side.

    `words` say where the forced tokens are from.
    """

    prompts: tuple[tuple[int, ...], ...]
    forced: tuple[tuple[int, ...], ...] | None
    words: str


def script(model: Reader, steps: int, prompts: str | Path | None, text: str | Path | None) -> Script:
    """Take prompts from a file, pieces from all over a text, or the default prompts.

    Raises InputError for a file that cannot be taken, CapacityError for a prompt that leaves no room for
    `steps` tokens.
    """
    if prompts is not None and text is not None:
        raise InputError("prompts and a text are two ways to say what is decoded; give one of them")
    if text is not None:
        found = _pieces(model, text, steps)
    else:
        rows = default_prompts(model, steps) if prompts is None else _prompts(model, prompts)
        found = Script(tuple(map(tuple, rows)), None, "greedy tokens of the first side")
    check_room(found.prompts, steps, model.bundle.model.max_context)
    return found


def _pieces(model: Reader, text: str | Path, steps: int) -> Script:
    ids = _encode(model, _read(text), str(text))
    length = PIECE + steps
    if len(ids) < length:
        raise InputError(
            f"{text}: has {counted(len(ids), 'token')}, and a piece takes {length} "
            f"({PIECE} and {counted(steps, 'step')}); give a longer text or fewer steps"
        )
    count = min(PIECES, len(ids) // length)
    starts = [round(i * (len(ids) - length) / max(1, count - 1)) for i in range(count)]
    bos = model.bundle.text.bos_id
    pieces = [ids[start : start + length] for start in starts]
    if bos is not None:
        pieces = [[bos, *piece[1:]] for piece in pieces]
    return Script(
        tuple(tuple(piece[:PIECE]) for piece in pieces),
        tuple(tuple(piece[PIECE:]) for piece in pieces),
        f"those of {text}, in {counted(count, 'piece')} from all over it",
    )


def _prompts(model: Reader, file: str | Path) -> list[list[int]]:
    """Read a prompt a line, or JSON: a list of texts or of rows of token ids."""
    content = _read(file)
    if Path(file).suffix != ".json":
        rows: list[object] = [line for line in content.splitlines() if line.strip()]
    else:
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as cause:  # too deep, or a number of thousands of digits
            raise InputError(f"{file}: is not JSON ({cause}); mend it, or name a text .txt") from cause
    if not isinstance(rows, list) or not rows:
        raise InputError(f'{file}: has no prompts; give a line each, or JSON like ["a text", [1, 2, 3]]')
    return [_row(model, row, f"{file}: prompt {number}") for number, row in enumerate(rows, 1)]


def _row(model: Reader, row: object, where: str) -> list[int]:
    if isinstance(row, str):
        ids = _encode(model, row, where)
    elif isinstance(row, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in row):
        ids = row
    else:
        raise InputError(f"{where} is neither a text nor a list of token ids; give one of the two")
    if not ids:
        raise InputError(f"{where} is empty; give at least one token")
    vocab = model.bundle.model.vocab_size
    if outside := [token for token in ids if not 0 <= token < vocab]:
        raise InputError(f"{where}: token id {outside[0]} is outside the vocabulary of {vocab}; give others")
    return ids


def _encode(model: Reader, text: str, where: str) -> list[int]:
    if model.text is None:
        raise InputError(
            f"{where}: the bundle has no tokenizer; give rows of token ids (--prompts FILE.json)"
        )
    return model.text.encode(text)


def _read(file: str | Path) -> str:
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(FILE_CAP + 1)
        if len(content) > FILE_CAP:
            raise InputError(f"{file}: is larger than {FILE_CAP // 2**20} MiB; give a part of it")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"{file}: cannot be read as a text in UTF-8 ({cause}); give another") from cause
