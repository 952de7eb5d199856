"""What comes along so that a bundle can read and write text: tokenizer, chat template, special ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mla_runtime.errors import CheckpointError

_JSON_LIMIT = 16 * 2**20
# tokenizer.json of large vocabularies is past the cap of a configuration.
_TOKENIZER_LIMIT = 100 * 2**20


def copy_text_files(source: Path, config: dict[str, Any], staging: Path) -> dict[str, Any]:
    """Copy the tokenizer files of the checkpoint `source` and give the manifest's `text` entry.

    Raises `CheckpointError` for files that are damaged. A checkpoint without `tokenizer.json` gives a
    bundle that runs on ids.
    """
    settings = _read(source / "tokenizer_config.json")
    tokenizer = source / "tokenizer.json"
    name = None
    if tokenizer.is_file():
        _check_size(tokenizer, _TOKENIZER_LIMIT)
        shutil.copyfile(tokenizer, staging / "tokenizer.json")
        name = "tokenizer.json"
    template = _chat_template(source, settings)
    if template is not None:
        (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
    generation = _read(source / "generation_config.json")
    bos = generation.get("bos_token_id", config.get("bos_token_id"))
    stop = generation.get("eos_token_id", config.get("eos_token_id"))
    stop_ids = [] if stop is None else stop if isinstance(stop, list) else [stop]
    vocab = config["vocab_size"]
    for id_ in [*stop_ids, *([] if bos is None else [bos])]:
        if type(id_) is not int or not 0 <= id_ < vocab:
            raise CheckpointError(
                f"{source}: the special token id {id_!r} is not in 0 … {vocab - 1}; mend its config"
            )
    tokens = {
        key: text for key in ("bos_token", "eos_token", "pad_token") if (text := _token(settings.get(key)))
    }
    return {
        "tokenizer": name,
        "chat_template": None if template is None else "chat_template.jinja",
        "tokens": tokens,
        "bos_id": bos,
        "add_bos": bool(settings.get("add_bos_token", False)) and bos is not None,
        "stop_ids": sorted(set(stop_ids)),
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    _check_size(path, _JSON_LIMIT)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise CheckpointError(f"{path} is not JSON ({cause}); get the file again") from cause
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__} instead of an object; get the file again")
    return value


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(
            f"{path} has {size} bytes, more than the limit of {limit}; it is not what its name says"
        )


def _chat_template(source: Path, settings: dict[str, Any]) -> str | None:
    path = source / "chat_template.jinja"
    if path.is_file():
        _check_size(path, _JSON_LIMIT)
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones: the default is the one for plain chat
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
