"""A bundle on disk: its manifest, and files that are what the manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_runtime import integrity
from mla_runtime.errors import BundleError
from mla_runtime.external import check_external
from mla_runtime.fields import read_json
from mla_runtime.integrity import OnBytes, Stamp
from mla_runtime.manifest import CacheTensor, Graph, Manifest, ModelInfo, Phase, TextFiles, parse
from mla_runtime.paths import guarded

MANIFEST = "bundle.json"
# These are read into memory whole. protobuf ends at 2 GiB; the largest tokenizer known has 35 MB.
GRAPH_CAP = 2**31
TEXT_CAP = 100 * 2**20


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. `open` reads no weights; `ensure_hashed` or `verify_hashes` reads them all.

    `raw` is the manifest's JSON as it stands, for programs that show more than a runtime needs;
    `stamps` tell the files of that moment from whatever may take their places later.
    """

    path: Path
    manifest: Manifest
    paths: Mapping[str, Path]
    raw: Mapping[str, Any]
    stamps: Mapping[str, Stamp]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read `bundle.json` in the folder `path` and check every file's place and size.

        Raises `BundleError` for anything that is not exactly a bundle of a format known here.
        """
        root = Path(path)
        if not root.is_dir():
            raise BundleError(
                f"{root}: not a folder; give the folder of a bundle, the one that holds {MANIFEST}"
            )
        if (root / "config.json").is_file() and not (root / MANIFEST).exists():
            raise BundleError(
                f"{root}: is a checkpoint, not a bundle; export it first: mla-export export {root} BUNDLE"
            )
        raw = read_json(guarded(root, MANIFEST, str(root), BundleError))
        manifest = parse(raw, str(root / MANIFEST))
        paths = {
            name: guarded(root, name, f"{root / MANIFEST}: files", BundleError) for name in manifest.files
        }
        _check_named(manifest, str(root / MANIFEST))
        # Taken before anything is hashed: a file that changes meanwhile will not match them.
        stamps = integrity.stamps(paths, manifest.files)
        integrity.check_sizes(paths, manifest.files)
        return cls(root, manifest, paths, raw, stamps)

    def ensure_hashed(self, on_bytes: OnBytes | None = None) -> bool:
        """Hash the files unless it is known that exactly these were hashed before; give whether it did."""
        if integrity.remembered(self.path) == self._vouched():
            return False
        self.verify_hashes(on_bytes)
        return True

    def verify_hashes(self, on_bytes: OnBytes | None = None) -> None:
        """Hash every file in full, whatever was hashed before, and check that graphs use no other files.

        `on_bytes` is called with the number of bytes hashed since its last call; all of them are `nbytes`.
        """
        integrity.verify_hashes(self.paths, self.manifest.files, on_bytes)
        for graph in self.manifest.graphs.values():
            check_external(self.paths[graph.file], self.manifest.files)
        integrity.remember(self.path, self._vouched())

    def check_unchanged(self) -> None:
        """Raise `BundleError` where a file is no longer the one that was there when the bundle was opened.

        What reads a file by its path asks before and after: an export to the same name may have come
        between, and half of two bundles is a model that nobody made.
        """
        try:
            found = integrity.stamps(self.paths, self.manifest.files)
        except OSError as cause:
            raise BundleError(
                f"{self.path}: a file of it is gone ({cause}); open the bundle again"
            ) from cause
        for name, stamp in found.items():
            if stamp != self.stamps[name]:
                raise BundleError(f"{self.paths[name]}: changed after it was opened; open the bundle again")

    def _vouched(self) -> dict[str, Any]:
        """Give what was looked at: the manifest too, since it says which files are graphs."""
        return {"manifest": self.raw["sha256"], "files": dict(self.stamps)}

    @property
    def model(self) -> ModelInfo:
        """Name and sizes of the model."""
        return self.manifest.model

    @property
    def cache(self) -> tuple[CacheTensor, ...]:
        """The table of cache tensors."""
        return self.manifest.cache

    @property
    def text(self) -> TextFiles:
        """Tokenizer files and special ids."""
        return self.manifest.text

    @property
    def chunk(self) -> int:
        """The most new tokens that a call of the prompt graph should have."""
        return self.manifest.graphs["prompt"].chunk or 1

    @property
    def nbytes(self) -> int:
        """Bytes of all files, which is how many `on_bytes` will count."""
        return sum(entry.size for entry in self.manifest.files.values())

    def graph(self, phase: Phase) -> Graph:
        """Give the graph of a phase."""
        return self.manifest.graphs[phase]


def _check_named(manifest: Manifest, where: str) -> None:
    """Raise `BundleError` unless the files with a use are listed, at sizes that can be read for it."""
    texts = (manifest.text.tokenizer, manifest.text.chat_template)
    caps = {graph.file: GRAPH_CAP for graph in manifest.graphs.values()}
    caps |= {name: TEXT_CAP for name in texts if name is not None}
    for name, cap in caps.items():
        if name not in manifest.files:
            raise BundleError(f"{where}: {name!r} is used but not listed in files; export it again")
        if (size := manifest.files[name].size) > cap:
            msg = f"{where}: {name!r} has {size} bytes, more than the {cap} for its use; "
            raise BundleError(msg + "it is not what its name says, do not use this bundle")
