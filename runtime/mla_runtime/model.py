"""A bundle loaded on a backend, ready to decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from mla_runtime import backends
from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, CapacityError, InputError
from mla_runtime.generate import Completion, Limits, Row, Stream, complete
from mla_runtime.integrity import OnBytes
from mla_runtime.sampling import Sampling
from mla_runtime.session import Session, context_limit
from mla_runtime.text import Text, load_text
from mla_runtime.wording import counted

Prompt = str | Sequence[int]
GREEDY = Sampling()


def open(  # noqa: A001 - the public name, as `gzip.open`
    path: str | Path,
    backend: str = "ort:cpu",
    threads: int | None = None,
    on_bytes: OnBytes | None = None,
    engines: str | Path | None = None,
) -> Model:
    """Open the bundle in the folder `path` on `backend`.

    The first time, and whenever a file changed, all files are hashed; `on_bytes` is called with the
    bytes hashed since its last call. `threads` are those of the engine (None: its own choice).
    TensorRT runs the engines in the folder `engines`, which the caller trusts (None: those of the user's
    cache, or built here and now).
    Raises `BundleError`, or `BackendError` for an engine or provider that is not there.
    """
    bundle = Bundle.open(path)
    bundle.ensure_hashed(on_bytes)
    return Model(bundle, backends.load(backend, bundle, threads, engines))


class Model:
    """A bundle and the backend that loaded it. Threads may share a model, each with sessions of its own."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._text: Text | None = None

    @property
    def text(self) -> Text | None:
        """Tokenizer and chat template, or None where the bundle works on ids alone."""
        if self._text is None:
            self._text = load_text(self.bundle)
        return self._text

    def session(self, batch: int = 1, max_context: int | None = None) -> Session:
        """Open a session of `batch` sequences of up to `max_context` rows (None: the bundle's own limit)."""
        return Session(self.backend, self.bundle, batch, max_context)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        max_context: int | None = None,
    ) -> Stream:
        """Stream tokens that continue `prompt`, a text or ids. Tokens have no text without a tokenizer.

        Ids without `stop` need no package `tokenizers`; where it is missing, it is as without a tokenizer.

        Ends at `max_tokens` (reason `length`), before one of the `stop` strings or at one of
        `stop_ids` (reason `stop`; None takes the bundle's), or when the context is full (`capacity`).
        """
        ids = self._ids(prompt)
        limits = self._limits(max_tokens, stop, stop_ids)
        capacity = self._capacity([ids], max_context)
        row = Row(ids, sampling, limits, capacity, self._decode(stop))
        return Stream(lambda: self.session(1, min(capacity, len(ids) + max_tokens)), ids, row)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        max_context: int | None = None,
    ) -> list[Completion]:
        """Continue several prompts as one batch, to their ends; parameters as in `generate`.

        With a seed every row draws as it would alone.
        """
        rows_ids = [self._ids(prompt) for prompt in prompts]
        if not rows_ids:
            raise InputError("no prompts; give at least one")
        limits = self._limits(max_tokens, stop, stop_ids)
        capacity = self._capacity(rows_ids, max_context)
        # Rows past what they can use would only make the shown cache wider.
        longest = min(capacity, max(map(len, rows_ids)) + max_tokens)
        decode = self._decode(stop)
        rows = [Row(ids, sampling, limits, capacity, decode) for ids in rows_ids]
        with self.session(len(rows), longest) as session:
            return complete(session, rows_ids, rows)

    def close(self) -> None:
        """Free graphs and weights."""
        self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            ids = list(prompt)
        elif self.text is None:
            raise InputError(f"{self.bundle.path}: the bundle has no tokenizer; give the prompt as token ids")
        else:
            ids = self.text.encode(prompt)
        if not ids:
            raise InputError("the prompt is empty; give at least one token")
        return ids

    def _limits(self, max_tokens: int, stop: Sequence[str], stop_ids: Sequence[int] | None) -> Limits:
        if isinstance(stop, str):
            raise InputError(f"stop is the string {stop!r}; give a list of strings")
        ids = self.bundle.text.stop_ids if stop_ids is None else stop_ids
        return Limits(max_tokens, frozenset(ids), tuple(stop))

    def _capacity(self, prompts: Sequence[Sequence[int]], max_context: int | None) -> int:
        capacity = context_limit(self.bundle, max_context)
        if (longest := max(map(len, prompts))) > capacity:
            msg = f"a prompt of {counted(longest, 'token')} passes the {counted(capacity, 'row')} of the "
            raise CapacityError(msg + "context; shorten it, or take a larger max_context")
        return capacity

    def _decode(self, stop: Sequence[str]) -> Callable[[Sequence[int]], str] | None:
        try:
            return None if self.text is None else self.text.decode
        except BackendError:  # the package is not there, which only words need
            if stop:
                raise
            return None
