"""What a checkpoint, a bare configuration or a bundle holds, and what its attention costs. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mla_export import costs
from mla_export.checkpoint import Checkpoint, refuse_other
from mla_export.geometry_json import geometry_from
from mla_graphs import Geometry
from mla_runtime.bundle import MANIFEST, Bundle
from mla_runtime.engines.version_check import Report, survey
from mla_runtime.errors import CheckpointError, ConfigError
from mla_runtime.fields import read_json
from mla_runtime.paths import guarded

Kind = Literal["config", "checkpoint", "bundle"]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of a checkpoint: how many and how large, by dtype, and why some are not consumed."""

    count: int
    nbytes: int
    dtypes: dict[str, int]
    consumed: int
    ignored: dict[str, int]  # reason -> number of tensors


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that `mla-export inspect` knows of one model."""

    path: Path
    kind: Kind
    geometry: Geometry
    tensors: Tensors | None = None
    bundle: Bundle | None = None
    notes: tuple[str, ...] = field(default=())
    versions: tuple[Report, ...] = field(default=())  # of TensorRT, beside a bundle

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain JSON values; sizes are in elements unless named bytes."""
        g = self.geometry
        factored = costs.attention_elements(g, "factored")
        forms: tuple[costs.CacheForm, ...] = ("latent", "expanded")
        result: dict[str, Any] = {
            "path": str(self.path),
            "kind": self.kind,
            "family": g.family,
            "geometry": asdict(g),
            "parameters": asdict(costs.parameters(g)),
            "attention": {
                form: {
                    "elements_per_layer": costs.attention_elements(g, form),
                    "ratio": costs.attention_elements(g, form) / factored,
                    "bytes_per_token": {
                        name: costs.attention_elements(g, form) * size * g.num_hidden_layers
                        for name, size in costs.ITEM_BYTES.items()
                    },
                    "break_even_context": costs.merge_break_even(g, form),
                }
                for form in costs.FORMS
            },
            "cache_bytes_per_token": {
                form: {name: costs.cache_token_bytes(g, form, name) for name in costs.CACHE_FORMATS}
                for form in forms
            },
            "tensors": None if self.tensors is None else asdict(self.tensors),
            "notes": list(self.notes),
        }
        if self.bundle is not None:
            manifest = self.bundle.manifest
            result["bundle"] = {
                "target": manifest.target,
                "opset": manifest.opset,
                "absorb": manifest.absorb,
                "precision": asdict(manifest.precision),
                "chunk": self.bundle.chunk,
                "files": {name: entry.size for name, entry in manifest.files.items()},
                "cache": [asdict(tensor) for tensor in manifest.cache],
                "tensorrt": [report.as_json() for report in self.versions],
            }
        return result


def inspect(path: str | Path, max_context: int | None = None) -> Inspection:
    """Read what `path` is: a bundle, a folder with or without weights, or a config.json.

    Raises `ConfigError` for a model that is not supported, with the reason, `CheckpointError` for
    tensors that do not add up and `BundleError` for a damaged manifest or graph. Weights are not read.
    """
    root = Path(path)
    if (root / MANIFEST).is_file():
        bundle = Bundle.open(root)
        where = f"{root / MANIFEST}: model.geometry"
        geometry = geometry_from(bundle.raw["model"]["geometry"], where)
        return Inspection(root, "bundle", geometry, bundle=bundle, versions=survey(bundle))
    refuse_other(root)
    if root.is_dir() and any(root.glob("*.safetensors")):
        return _inspect_checkpoint(root, max_context)
    if root.is_dir():
        return _inspect_config(root / "config.json", max_context, in_folder=True)
    return _inspect_config(root, max_context, in_folder=False)


def _inspect_checkpoint(root: Path, max_context: int | None) -> Inspection:
    from mla_export.families import account, family_of

    checkpoint = Checkpoint.open(root)
    family = family_of(checkpoint.config)
    geometry = family.geometry(checkpoint.config, max_context)
    accounting = account(checkpoint, family, geometry)
    infos = checkpoint.tensors.values()
    tensors = Tensors(
        count=len(infos),
        nbytes=sum(info.nbytes for info in infos),
        dtypes=dict(Counter(info.dtype for info in infos)),
        consumed=len(accounting.names),
        ignored=dict(Counter(accounting.ignored.values())),
    )
    return Inspection(root, "checkpoint", geometry, tensors=tensors)


def _inspect_config(file: Path, max_context: int | None, *, in_folder: bool) -> Inspection:
    from mla_export.families import family_of, text_config

    if not file.is_file():
        raise ConfigError(f"{file}: not found; give a checkpoint folder, a config.json or a bundle")
    if in_folder:  # a folder's content is not the user's own choice of file
        file = guarded(file.parent, file.name, str(file.parent), CheckpointError)
    config = read_json(file, ConfigError)
    geometry = family_of(config).geometry(config, max_context)
    notes = ["no safetensors here: tensors are not accounted for"]
    if drafts := text_config(config).get("num_nextn_predict_layers"):
        notes.append(f"{drafts} multi-token-prediction layer(s) are left out: they only draft ahead")
    return Inspection(file, "config", geometry, notes=tuple(notes))
