"""Measure llama.cpp on a GGUF file of gguf_file.py."""

from __future__ import annotations

import re
from pathlib import Path

import llama_cpp
import measure
from gguf import GGUFReader
from llama import CACHES, Llama, row_bytes

_COMPILER = re.compile(rb"clang version [\d.]+|GCC: \([^)]*\) [\d.]+")


def build() -> str:
    """Say how the library was built: its compiler, as it left its name in it, and its features."""
    library = Path(llama_cpp.llama_cpp._lib._name)
    backend = next(library.parent.glob("libggml-cpu.*"))
    # GCC's start-up objects are in everything: it is the compiler if no other is named
    names = sorted(set(_COMPILER.findall(backend.read_bytes())), key=lambda name: name.startswith(b"GCC"))
    compiler = names[0].decode() if names else "unknown compiler"
    features = llama_cpp.llama_print_system_info().decode()
    on = re.findall(r"(\w+) = 1", features)
    return f"{compiler}; {' '.join(on)}"


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--cache", choices=CACHES, default="f16")
    parser.add_argument("--flash", choices=("on", "off"), default="on", help="flash attention")
    parser.add_argument("--repack", choices=("on", "off"), default="on", help="weights laid out anew")
    args = parser.parse_args()
    about = measure.About(
        peer="llama.cpp",
        version=f"llama-cpp-python {llama_cpp.__version__}",
        build=build(),
        shape=args.shape,
        weights=args.model.stem,
        cache=args.cache,
        options=f"flash {args.flash}, repack {args.repack}",
        cache_bytes_per_token=cache_bytes(args.model, args.cache),
    )
    with Llama(
        args.model,
        rows=measure.rows(args),
        threads=args.threads,
        cache=args.cache,
        flash=args.flash == "on",
        repack=args.repack == "on",
    ) as engine:
        measure.run(engine, about, args)


def cache_bytes(model: Path, cache: str) -> int:
    """Bytes a token in the cache: one key row a layer."""
    fields = GGUFReader(model).fields
    layers, width = (
        int(fields[f"deepseek2.{key}"].contents()) for key in ("block_count", "attention.key_length")
    )
    return layers * row_bytes(width, cache)


if __name__ == "__main__":
    main()
