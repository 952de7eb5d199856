"""Chat templates, rendered where they can reach nothing: they come with the model and are not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from mla_runtime.errors import BackendError, BundleError, InputError, MlaError

_CAP = 2**20
_OUTPUT_CAP = 64 * 2**20


def render(path: Path, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, str]) -> str:
    """Render the Jinja template in `path` over `messages`, as transformers' `apply_chat_template` does.

    `tokens` are the special tokens' text (`bos_token`, ...). The environment is Jinja's immutable
    sandbox: no attributes beginning with `_`, no changes to what is passed in, ranges of at most
    100,000. A template can still waste time and memory.

    Raises `InputError` with the template's own complaint about the messages, and `BundleError` for a
    template that does not compile or breaks a rule.
    """
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        from mla_runtime.generation_tag import Generation
    except ImportError as cause:
        raise BackendError(
            "chat needs the package jinja2; install the extra `text`, or give a prompt"
        ) from cause

    def complain(message: str) -> NoReturn:
        raise InputError(f"{path}: the chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = complain
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # Templates ask whether tools are none, which only what is given can be.
    given = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        template = environment.from_string(_read(path))
        pieces: list[str] = []
        size = 0
        for piece in template.generate({**tokens, **given}):
            size += len(piece)
            if size > _OUTPUT_CAP:
                raise BundleError(
                    f"{path}: the chat template writes more than {_OUTPUT_CAP} characters; do not use it"
                )
            pieces.append(piece)
    except MlaError:
        raise
    except Exception as cause:  # a template is a program: it can fail in every way that one can
        kind = type(cause).__name__
        raise BundleError(f"{path}: the chat template fails: {kind}: {cause}; give a plain prompt") from cause
    return "".join(pieces)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a model was not trained on. The parameters are transformers'.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_CAP + 1)
    if len(data) > _CAP:
        raise BundleError(
            f"{path}: a chat template larger than {_CAP} bytes; export the bundle again without it"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as cause:
        raise BundleError(
            f"{path}: a chat template that is not UTF-8 ({cause}); export the bundle again"
        ) from cause
