"""The text that tiny-mla learns from: this Python's standard library, less what the held-out text repeats."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END = "<|begin|>", "<|end|>"  # ids 0 and 1: the start of a window, the end of a file

# Tests repeat themselves, encodings and pydoc_data are tables, site-packages differ from machine to machine.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages"}
HELD_OUT_BYTES = 300_000
HELD_OUT_LARGEST_FILE = 40_000  # so that the held-out text has a dozen authors, not three
WINDOW_LINES, WINDOW_CHARS = 5, 120


def library_files() -> list[str]:
    """Read every distinct source file of the standard library, in the order of its content's SHA-256."""
    root = Path(sysconfig.get_path("stdlib"))
    by_digest = {}
    for path in root.rglob("*.py"):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            continue
        content = path.read_bytes()
        try:
            by_digest[hashlib.sha256(content).digest()] = content.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue  # a handful of old files declare another encoding
    return [by_digest[digest] for digest in sorted(by_digest)]


def pick_held_out(files: list[str]) -> str:
    """Join whole files, the smallest hashes first, until they fill `HELD_OUT_BYTES`."""
    picked: list[str] = []
    size = 0
    for text in files:
        if size >= HELD_OUT_BYTES:
            break
        if 2_000 <= len(text) <= HELD_OUT_LARGEST_FILE:
            picked.append(text)
            size += len(text.encode())
    return "".join(picked)


def windows(text: str) -> Iterator[str]:
    """Yield every run of five non-blank lines that is not trivially short, space around the lines removed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for start in range(len(lines) - WINDOW_LINES + 1):
        window = "\n".join(lines[start : start + WINDOW_LINES])
        if len(window) >= WINDOW_CHARS:
            yield window


def without(files: list[str], held_out: str) -> list[str]:
    """Drop files that share a window with the held-out text: by content, so any Python version will do."""
    forbidden = set(windows(held_out))
    return [text for text in files if forbidden.isdisjoint(windows(text))]


def train_tokenizer(files: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; every byte has a token, so nothing is unknown. Encoding puts `BEGIN` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, 0)]
    )
    return tokenizer


def encode_files(tokenizer: Tokenizer, files: list[str]) -> list[int]:
    """Make one stream of token ids, each file closed by `END`."""
    end = tokenizer.token_to_id(END)
    encodings = tokenizer.encode_batch(files, add_special_tokens=False)
    return [token for encoding in encodings for token in [*encoding.ids, end]]


def calibration_text() -> str:
    """Join the library's files that the held-out text shares nothing with, of middling size."""
    held_out = (Path(__file__).parent / "tiny-mla" / "held_out.txt").read_text(encoding="utf-8")
    return "".join(
        text for text in without(library_files(), held_out) if 2_000 <= len(text) <= HELD_OUT_LARGEST_FILE
    )


if __name__ == "__main__":  # python samples/tiny_text.py > calibration.txt
    import sys

    sys.stdout.write(calibration_text())
