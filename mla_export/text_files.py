"""What comes along so that a bundle can read and write text: tokenizer, chat template, special ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_export.checkpoint import GENERATION_CONFIG, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from mla_export.families import text_config
from mla_runtime.errors import CheckpointError
from mla_runtime.fields import JSON_CAP, parse_json
from mla_runtime.paths import guarded

# tokenizer.json of large vocabularies is past the cap of a configuration.
_TOKENIZER_LIMIT = 100 * 2**20


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The manifest's `text` entry, and the files to write: name to content."""

    entry: dict[str, Any]
    files: dict[str, bytes]

    def write(self, folder: Path) -> None:
        """Write the files into `folder`."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def read_text_files(source: Path, config: Mapping[str, Any], vocab_size: int) -> TextFiles:
    """Read and check the tokenizer files of the checkpoint in `source`, whose config.json is `config`.

    Raises `CheckpointError` for files that are damaged, too large, or links out of the folder. A
    checkpoint without `tokenizer.json` gives a bundle that runs on ids.
    """
    settings = _json(source, TOKENIZER_CONFIG)
    files: dict[str, bytes] = {}
    tokenizer = _bytes(source, TOKENIZER, _TOKENIZER_LIMIT)
    if tokenizer is not None:
        _check_tokenizer(source / TOKENIZER, tokenizer, vocab_size)
        files[TOKENIZER] = tokenizer
    template = _chat_template(source, settings)
    if template is not None:
        files[TEMPLATE] = template.encode()
    generation = _json(source, GENERATION_CONFIG)
    text = text_config(config)
    bos = generation.get("bos_token_id", text.get("bos_token_id"))
    stop = generation.get("eos_token_id", text.get("eos_token_id"))
    stop_ids = [] if stop is None else stop if isinstance(stop, list) else [stop]
    for id_ in [*stop_ids, *([] if bos is None else [bos])]:
        if type(id_) is not int or not 0 <= id_ < vocab_size:
            limit = f"0 … {vocab_size - 1}"
            raise CheckpointError(
                f"{source}: the special token id {id_!r} is not in {limit}; mend its config"
            )
    named = {key: _token(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    entry = {
        "tokenizer": None if tokenizer is None else TOKENIZER,
        "chat_template": None if template is None else TEMPLATE,
        "tokens": {key: token for key, token in named.items() if token},
        "bos_id": bos,
        "add_bos": bool(settings.get("add_bos_token", False)) and bos is not None,
        "stop_ids": sorted(set(stop_ids)),
    }
    return TextFiles(entry, files)


def _bytes(source: Path, name: str, limit: int) -> bytes | None:
    """Read a file of the checkpoint, None where there is none."""
    if not (source / name).exists() and not (source / name).is_symlink():
        return None
    path = guarded(source, name, name, CheckpointError)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(
            f"{path} is larger than the limit of {limit} bytes; it is not what its name says"
        )
    return content


def _check_tokenizer(path: Path, content: bytes, vocab_size: int) -> None:
    """Refuse a file that is not JSON, or whose ids the model has no rows for: another model's."""
    try:
        settings = json.loads(content)
        vocab = settings["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        largest = max([*ids, *(token["id"] for token in settings.get("added_tokens", []))])
    except (ValueError, RecursionError, KeyError, TypeError) as cause:
        raise CheckpointError(f"{path} is not a tokenizer ({cause!r}); get the file again") from cause
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} gives ids up to {largest}, and the model has rows for 0 … {vocab_size - 1}; "
            "it is another model's: take this one's, or remove it to export a bundle that runs on ids"
        )


def _text(source: Path, name: str) -> str | None:
    content = _bytes(source, name, JSON_CAP)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError as cause:
        raise CheckpointError(f"{source / name} is not UTF-8 ({cause}); get the file again") from cause


def _json(source: Path, name: str) -> dict[str, Any]:
    content = _bytes(source, name, JSON_CAP)
    return {} if content is None else parse_json(content, str(source / name), CheckpointError)


def _chat_template(source: Path, settings: Mapping[str, Any]) -> str | None:
    template = _text(source, TEMPLATE)
    if template is not None:
        return template
    kept = settings.get("chat_template")
    if isinstance(kept, list):  # several named ones: the default is the one for plain chat
        named = {item.get("name"): item.get("template") for item in kept if isinstance(item, dict)}
        kept = named.get("default")
    return kept if isinstance(kept, str) else None


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
