"""llama.cpp through llama-cpp-python's plain bindings: one sequence, logits of the last token.

The engine alone: no tokenizer, no sampling. `LLAMA_CPP_LIB_PATH` chooses another build of the library.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np

CACHES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
SEED_ROWS = 64  # computed rows that a filled cache repeats


class LlamaError(RuntimeError):
    """llama.cpp refused something; it says why on stderr."""


class _Placement(ctypes.Structure):
    """llama.cpp's llama_model_tensor_buft_override: tensors by pattern, and the kind of buffer they go to."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _plain_per_head_weights() -> ctypes.Array[_Placement]:
    """Keep W_UK and W_UV out of buffers that lay weights out anew.

    The AMX buffer takes them, and then refuses the matmul over permuted queries that they are for:
    "GGML_ASSERT(*cur_backend_id != -1) failed". Naming the CPU's own buffer type has no effect, since
    llama.cpp then considers AMX again; that of a wrapped pointer is a plain buffer as well, and is obeyed.
    """
    library = llama_cpp.llama_cpp._lib
    wrap, kind = library.ggml_backend_cpu_buffer_from_ptr, library.ggml_backend_buffer_get_type
    wrap.argtypes, wrap.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_void_p
    kind.argtypes, kind.restype = (ctypes.c_void_p,), ctypes.c_void_p
    release = library.ggml_backend_buffer_free
    release.argtypes, release.restype = (ctypes.c_void_p,), None
    aligned = ctypes.create_string_buffer(128)
    buffer = wrap((ctypes.addressof(aligned) + 63) // 64 * 64, 64)
    plain = kind(buffer)
    release(buffer)
    return (_Placement * 2)(_Placement(rb"attn_[kv]_b\.weight", plain), _Placement(None, None))


class Llama:
    """A model and one context of `rows` cache rows.

    `flash` chooses flash attention, `repack` whether weights may be laid out anew for the processor
    (its option --repack). Prompts go in batches of `batch` tokens.
    """

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        threads: int,
        cache: str = "f16",
        flash: bool = True,
        repack: bool = True,
        batch: int = 512,
    ) -> None:
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.use_extra_bufts = repack
        # read, not mapped: the first steps must not wait for pages of experts nobody asked for yet
        model.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        placements = _plain_per_head_weights()  # read while the model is loaded
        model.tensor_buft_overrides = ctypes.cast(placements, ctypes.c_void_p)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        if not self._model:
            raise LlamaError(f"{path}: llama.cpp does not load it")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = rows
        context.n_batch = context.n_ubatch = batch
        context.n_threads = context.n_threads_batch = threads
        context.type_k = context.type_v = CACHES[cache]
        context.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        context.no_perf = True
        self._context: Any = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise LlamaError(f"{path}: no context of {rows} rows with cache {cache}, flash attention {flash}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = batch
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.length = 0

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free context and model."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def decode(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` to the sequence and give the last one's logits, [V], in llama.cpp's own memory."""
        for start in range(0, len(ids), self._batch):
            part = ids[start : start + self._batch]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if status:
                raise LlamaError(f"llama_decode of {len(part)} tokens at row {self.length} gave {status}")
            self.length += len(part)
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)  # waits for the result
        return np.ctypeslib.as_array(logits, (self.vocab_size,))

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        self.length = 0

    def fill(self, depth: int) -> None:
        """Have exactly `depth` rows in the cache, without computing them all.

        A few rows are computed from random tokens, and the sequence is restored from a saved state in
        which they repeat: what a step costs depends on how many rows there are, not on what they hold.
        """
        self._forget()
        if depth == 0:
            return
        seed = min(depth, SEED_ROWS)
        self.decode(np.random.default_rng(0).integers(self.vocab_size, size=seed).tolist())
        if depth > seed:
            size = llama_cpp.llama_state_seq_get_size(self._context, 0)
            state = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(self._context, state, size, 0)
            longer = repeat_rows(bytes(state), depth)
            self._forget()
            source = (ctypes.c_uint8 * len(longer)).from_buffer_copy(longer)
            if llama_cpp.llama_state_seq_set_data(self._context, source, len(longer), 0) != len(longer):
                raise LlamaError(f"llama.cpp does not take a saved state of {depth} rows")
        self.length = depth


def repeat_rows(state: bytes, depth: int) -> bytes:
    """Make a sequence state of `depth` rows out of one with fewer, by repeating them.

    The layout is that of llama.cpp's llama_kv_cache::state_write for an absorbed model, whose cache is
    keys only: magic, sequence, streams (1), cells, then (position, 1, sequence) a cell; whether values
    are transposed, layers; a layer's type, bytes a row and rows. Raises LlamaError for any other.
    """
    magic, sequence, streams, cells = struct.unpack_from("<IiII", state)
    at = 16 + 12 * cells
    transposed, layers = struct.unpack_from("<II", state, at)
    at += 8
    numbers = np.zeros((depth, 3), dtype="<i4")
    numbers[:, 0], numbers[:, 1] = np.arange(depth), 1
    out = [struct.pack("<IiII", magic, sequence, streams, depth), numbers.tobytes()]
    out.append(struct.pack("<II", transposed, layers))
    for _ in range(layers):
        kind, row = struct.unpack_from("<iQ", state, at)
        at += 12
        rows = state[at : at + row * cells]
        at += row * cells
        repeats = -(-depth // cells)
        out += [struct.pack("<iQ", kind, row), (rows * repeats)[: row * depth]]
    if streams != 1 or not 0 <= len(state) - at <= 4 + 12 * layers:
        raise LlamaError(f"a saved state of {len(state)} bytes ends at {at}: its layout is another one")
    return b"".join([*out, state[at:]])


def row_bytes(width: int, cache: str) -> int:
    """Bytes of one row of `width` numbers in a cache of the type `cache`."""
    row: Any = llama_cpp.llama_cpp._lib.ggml_row_size
    row.argtypes, row.restype = (ctypes.c_int, ctypes.c_int64), ctypes.c_size_t
    return int(row(CACHES[cache], width))
