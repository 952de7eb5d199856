"""Compiling CUDA source with NVRTC, which needs no GPU."""

from __future__ import annotations

from typing import Any

from mla_runtime.errors import BackendError


def compile_cubin(source: str, card: str) -> bytes:
    """Compile `source` for a card such as `sm86`.

    Raises `BackendError` where NVRTC is not there or does not know the card, with its log otherwise.
    """
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as cause:
        msg = f"NVRTC does not load ({str(cause).partition(chr(10))[0]}); install it with: pip install "
        raise BackendError(f"{msg}nvidia-cuda-nvrtc, or with CUDA's toolkit, as on a Jetson") from cause
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), b"mla_runtime.cu", 0, [], []), card)
    try:
        options = [f"--gpu-architecture={card.replace('sm', 'sm_')}".encode(), b"--std=c++17"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program), card))
            _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log), card)
            said = log.rstrip(b"\0").decode().strip() or _words(nvrtc, status)
            raise BackendError(f"NVRTC does not compile the kernels for {card}: {said}")
        cubin = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program), card))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin), card)
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(nvrtc: Any, result: tuple[Any, ...], card: str) -> Any:
    status, *found = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC, compiling for {card}: {_words(nvrtc, status)}")
    return found[0] if found else None


def _words(nvrtc: Any, status: Any) -> str:
    said = nvrtc.nvrtcGetErrorString(status)[1]
    return said.decode() if isinstance(said, bytes) else str(status)
