"""A checkpoint: a folder with config.json and safetensors, read strictly and one tensor at a time.

Opening reads headers only. Weights are read from their files, never mapped, so that memory stays at
one tensor; torch is imported when the first of them is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mla_export import fp8
from mla_export.safetensors_file import MAX_TENSORS, TensorInfo, read_header
from mla_runtime.errors import CheckpointError, ConfigError
from mla_runtime.fields import read_json
from mla_runtime.integrity import sha256
from mla_runtime.paths import guarded
from mla_runtime.wording import counted

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "TensorInfo", "differing"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CHUNK = 1 << 24
# what `mla_export.text_files` reads beside config.json, and a bundle carries in one form or another
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION_CONFIG)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its configuration and where each tensor lies."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a folder; reads config.json, index and headers, but no weights.

        Raises ConfigError for an adapter or a broken config.json, CheckpointError for broken files.
        """
        folder = Path(path)
        refuse_other(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: is not a folder; name the one with config.json and safetensors")
        if not (folder / "config.json").exists():
            raise ConfigError(f"{folder}: has no config.json; name the folder of a Hugging Face checkpoint")
        config = read_json(_file(folder, "config.json"), CheckpointError)
        tensors = _read_tensors(folder)
        fp8.check_scales(tensors, quantized=_quantized(config))
        return cls(folder, config, tensors)

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor: bf16, fp16 and fp32 as stored, block-scaled fp8 dequantised to float32.

        Raises CheckpointError if a value is not finite, or the tensor is of another type.
        """
        import torch

        info = self.tensors[name]
        dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
        if info.dtype == "F8_E4M3":
            tensor = self._load(info, torch.float8_e4m3fn)
            scale = self._load(self.tensors[fp8.scale_name(name)], torch.float32)
            tensor = fp8.dequantize(tensor, scale)
        elif info.dtype in dtypes:
            tensor = self._load(info, dtypes[info.dtype])
        else:
            raise CheckpointError(
                f"{info.file}: {name} is stored as {info.dtype}; bf16, fp16, fp32 and fp8 are read"
            )
        # min and max carry any NaN or infinity; a mask of the whole tensor takes twenty times as long
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            count = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{info.file}: {name} has {counted(count, 'value')} not finite; the checkpoint is damaged"
            )
        return tensor

    def same_bytes(self, first: str, second: str) -> bool:
        """Tell whether two tensors are stored with the same type, shape and bytes."""
        a, b = self.tensors[first], self.tensors[second]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return all(x == y for x, y in zip(_chunks(a), _chunks(b), strict=True))

    def hashes(self, on_bytes: Callable[[int], None] | None = None) -> dict[str, str]:
        """Hash the `files`: name -> SHA-256; `on_bytes` hears of each piece's size.

        Raises CheckpointError for a link that leads out of the folder.
        """
        return {file.name: sha256(file, on_bytes) for file in self.files()}

    def files(self) -> list[Path]:
        """Give what a bundle is made of: config.json, the shards, and of `TEXT_FILES` what is there."""
        texts = [name for name in TEXT_FILES if (self.path / name).exists()]
        shards = sorted({info.file for info in self.tensors.values()})
        return [self.path / "config.json", *shards, *(_file(self.path, name) for name in texts)]

    def _load(self, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
        import torch

        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        buffer = bytearray(info.nbytes)
        try:
            with info.file.open("rb") as stream:
                stream.seek(info.offset)
                filled = stream.readinto(buffer)
        except OSError as error:
            raise CheckpointError(f"{info.file}: cannot be read: {error.strerror}") from error
        if filled != info.nbytes:
            raise CheckpointError(f"{info.file}: became shorter while it was read")
        return torch.frombuffer(buffer, dtype=dtype).reshape(info.shape)


def refuse_other(path: Path) -> None:
    """Raise ConfigError for a PEFT adapter, CheckpointError for a file of weights: each with what to name."""
    if path.suffix == ".safetensors" and path.is_file():
        raise CheckpointError(f"{path}: is a file of weights; name its folder, which holds config.json too")
    if path.suffix == ".gguf" and path.is_file():
        raise CheckpointError(
            f"{path}: is a GGUF file, which is not read; name the folder of the safetensors checkpoint "
            "that it was made from"
        )
    if (path / "adapter_config.json").exists():
        raise ConfigError(
            f"{path}: has an adapter_config.json: this is a PEFT adapter; merge it into its base model "
            "(merge_and_unload) and export the merged checkpoint"
        )


def _quantized(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    return any(place.get("quantization_config") is not None for place in places)


def _chunks(info: TensorInfo) -> Iterator[bytes]:
    with info.file.open("rb") as stream:
        stream.seek(info.offset)
        for start in range(0, info.nbytes, _CHUNK):
            yield stream.read(min(_CHUNK, info.nbytes - start))


def _file(folder: Path, name: str, entry: str = "") -> Path:
    return guarded(folder, name, f"{folder}{entry}", CheckpointError)


def _read_tensors(folder: Path) -> dict[str, TensorInfo]:
    single, index = (folder / _SINGLE).exists(), (folder / _INDEX).exists()
    if single and index:
        raise CheckpointError(
            f"{folder}: has both {_SINGLE} and {_INDEX}; remove the one that is not the model"
        )
    if single:
        return read_header(_file(folder, _SINGLE))
    if index:
        return _read_shards(folder, _weight_map(folder))
    raise CheckpointError(f"{folder}: {_what_is_there(folder)}")


def _what_is_there(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return f"has safetensors files, but neither {_SINGLE} nor {_INDEX}; download the index too"
    for suffix in (".bin", ".pt", ".pth", ".ckpt"):
        if found := [name for name in names if name.endswith(suffix)]:
            return (
                f"has weights only as {found[0]}, a pickle, which can run code and is never opened; convert "
                "it to safetensors with transformers (save_pretrained), in a place made for that"
            )
    if found := [name for name in names if name.endswith(".gguf")]:
        return f"has weights only as {found[0]}; export the safetensors checkpoint that it was made from"
    return f"has no {_SINGLE} and no {_INDEX}; download the weights"


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(_file(folder, _INDEX), CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / _INDEX}: weight_map must map tensor names to file names")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(
            f"{folder / _INDEX}: has {len(weight_map)} tensors, above the limit of {MAX_TENSORS}"
        )
    return weight_map


def _read_shards(folder: Path, weight_map: dict[str, str]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    paths = {file: _file(folder, file, f"/{_INDEX}: weight_map") for file in sorted(set(weight_map.values()))}
    for file, path in paths.items():
        for name, info in read_header(path).items():
            if name not in weight_map:
                raise CheckpointError(f"{folder / file}: has tensor {name!r}, which is not in {_INDEX}")
            if name in tensors:
                raise CheckpointError(
                    f"{folder / file}: has tensor {name!r}, which {tensors[name].file.name} has too"
                )
            if weight_map[name] != file:
                raise CheckpointError(
                    f"{folder / file}: has tensor {name!r}, which {_INDEX} puts into {weight_map[name]}"
                )
            tensors[name] = info
    for name, file in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{folder / file}: lacks tensor {name!r}, which {_INDEX} puts there")
    return tensors


def differing(first: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Name the files whose hashes differ, or that one of the two lacks."""
    return sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
