"""What there is to measure: every engine with every shape, weights and cache it can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = {path.stem: path for path in sorted((HERE / "shapes").glob("*.json"))}
PEERS = ("llama.cpp", "mobius-onnx", "transformers", "mla-export")

# float32 weights of the mixture of experts would take 18 GB, and mobius-onnx does not export it
_FLOAT32_SHAPES = ("dense",)

# our weights -> llama.cpp's of the same width
GGUF_TYPES = {"int4": "q4_0", "int8": "q8_0"}


@dataclass(frozen=True, slots=True)
class Case:
    """One run of one engine: the runner's script, the model it needs and further arguments.

    `model` is a file or folder under the shape's folder, made by `make` if it is not there; `weights`
    is what the user chooses by: float, int8 or int4.
    """

    peer: str
    shape: str
    weights: str
    script: str
    model: str
    make: tuple[str, ...]
    arguments: tuple[str, ...]


def cases(shape: str) -> Iterator[Case]:
    """Give every case of a shape; `{checkpoint}` and `{model}` in `make` stand for paths."""
    yield from _llama(shape)
    if shape in _FLOAT32_SHAPES:
        yield Case(
            peer="mobius-onnx",
            shape=shape,
            weights="float",
            script="run_mobius.py",
            model="mobius/model.onnx",
            make=("-m", "mobius", "build", "--config", "{checkpoint}", "--dtype", "f32", "{folder}"),
            arguments=(),
        )
    for dtype in ("float32", "bfloat16"):
        if dtype == "bfloat16" or shape in _FLOAT32_SHAPES:
            yield Case(
                peer="transformers",
                shape=shape,
                weights="float",
                script="run_transformers.py",
                model="checkpoint",
                make=(),
                arguments=("--dtype", dtype),
            )
    yield from _ours(shape)


def _llama(shape: str) -> Iterator[Case]:
    for weights, kind in GGUF_TYPES.items():
        # (cache, flash attention, repack); the quantised cache exists with flash attention only
        for cache, flash, repack in (
            ("f16", "on", "on"),
            ("f16", "off", "on"),
            ("q8_0", "on", "on"),
            ("f16", "on", "off"),
        ):
            yield Case(
                peer="llama.cpp",
                shape=shape,
                weights=weights,
                script="run_llama.py",
                model=f"{kind}.gguf",
                make=(str(HERE / "gguf_file.py"), "{checkpoint}", "{model}", "--weights", kind),
                arguments=("--cache", cache, "--flash", flash, "--repack", repack),
            )


def _ours(shape: str) -> Iterator[Case]:
    for weights in ("float", "int8", "int4"):
        if weights == "float" and shape not in _FLOAT32_SHAPES:
            continue
        for cache in ("float", "int8"):
            options = ["--target", "ort-cpu", "--weights", weights.replace("float", "fp32")]
            if weights != "float":
                options += ["--group", "128"]
            if weights == "int4":  # the GGUF's head has 4 bits too
                options += ["--head", "int4"]
            if cache == "int8":
                options += ["--cache", "int8"]
            yield Case(
                peer="mla-export",
                shape=shape,
                weights=weights,
                script="run_ours.py",
                model=f"bundle-{weights}-{cache}",
                make=("-m", "mla_export", "export", "{checkpoint}", "{model}", *options),
                arguments=("--weights", weights, "--cache", cache),
            )
