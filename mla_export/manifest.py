"""Writing `bundle.json`, format 1; `mla_runtime.manifest` reads it, docs/bundle.md specifies it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from mla_export.costs import parameters
from mla_export.plan import Plan
from mla_graphs.geometry import Phase
from mla_runtime.manifest import FORMAT, Calibration, Canary, FileEntry, digest


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an export knows of its bundle; `text` is the entry of that name."""

    name: str
    plan: Plan
    graphs: Mapping[Phase, str]
    chunk: int
    text: Mapping[str, Any]
    source: Mapping[str, str]
    calibration: Calibration | None
    files: Mapping[str, FileEntry]

    def write(self, path: Path, canary: Canary) -> None:
        """Write the file, with the hash that finds a changed byte in it."""
        content = json.loads(json.dumps(self._content(canary)))
        content["sha256"] = digest(content)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _content(self, canary: Canary) -> dict[str, Any]:
        plan, g = self.plan, self.plan.geometry
        signature = plan.contract
        return {
            "format": FORMAT,
            "generator": {
                "mla-export": version("mla-export"),
                "torch": torch.__version__,
                "onnx-ir": ir.__version__,
            },
            "model": {
                "name": self.name,
                "family": g.family,
                "layers": g.num_hidden_layers,
                "vocab_size": g.vocab_size,
                "max_context": g.max_context,
                "parameters": parameters(g).total,
                "geometry": dataclasses.asdict(g),
            },
            "target": plan.target,
            "opset": plan.opset,
            "absorb": plan.absorb,
            "precision": dataclasses.asdict(plan.precision),
            "graphs": {
                "step": {"file": self.graphs["step"]},
                "prompt": {"file": self.graphs["prompt"], "chunk": self.chunk},
            },
            "inputs": [dataclasses.asdict(spec) for spec in signature.inputs],
            "outputs": [dataclasses.asdict(spec) for spec in signature.outputs],
            "cache": [
                {
                    "layer": spec.layer,
                    "kind": "append",
                    "holds": spec.kind,
                    "past": spec.past.name,
                    "present": spec.present.name,
                    "dtype": spec.past.dtype,
                    "row": spec.past.shape[2:],
                    "row_format": spec.row,
                }
                for spec in signature.cache
            ],
            "text": self.text,
            "source": self.source,
            "calibration": None if self.calibration is None else dataclasses.asdict(self.calibration),
            "canary": dataclasses.asdict(canary),
            "files": {name: dataclasses.asdict(entry) for name, entry in sorted(self.files.items())},
        }
