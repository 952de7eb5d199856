"""Text to ids and back: tokenizer and chat template.

`tokenizers` and `jinja2` (extra `text`) are imported when a bundle's files ask for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, BundleError, InputError


class Text:
    """The tokenizer and chat template of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        name = bundle.text.tokenizer
        if name is None:
            msg = f"{bundle.path}: the bundle has no tokenizer; give token ids (`run --ids`) in place of text"
            raise InputError(msg)
        try:
            from tokenizers import Tokenizer
        except ImportError as cause:
            raise BackendError(
                "text needs the package tokenizers; install the extra `text`, or give ids"
            ) from cause
        self._bundle = bundle
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle.paths[name]))
        except Exception as cause:  # tokenizers raises bare Exception
            raise BundleError(
                f"{bundle.paths[name]}: not a tokenizer that loads ({cause}); export it again"
            ) from cause

    def encode(self, text: str) -> list[int]:
        """Give the ids of a plain `text`, the beginning-of-sequence id first where the model wants it."""
        ids = self._ids(text)
        files = self._bundle.text
        if files.add_bos and files.bos_id is not None and ids[:1] != [files.bos_id]:
            ids.insert(0, files.bos_id)
        return ids

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Give the ids of a conversation through the bundle's chat template, ready for the model's turn."""
        return self._ids(self.render(messages))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Give the text of a conversation through the bundle's chat template."""
        name = self._bundle.text.chat_template
        if name is None:
            raise InputError(f"{self._bundle.path}: the bundle has no chat template; give a plain prompt")
        from mla_runtime.chat import render

        return render(self._bundle.paths[name], messages, self._bundle.text.tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Give the text of `ids` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            msg = f"the text has {text[cause.start]!r} at {cause.start}, which is no character; give UTF-8"
            raise InputError(msg) from cause
        # Special tokens are the bundle's business (add_bos, the template), not the post-processor's.
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def load_text(bundle: Bundle) -> Text | None:
    """Give the text side of a bundle, or None where it has no tokenizer and works on ids alone."""
    return None if bundle.text.tokenizer is None else Text(bundle)
