"""One hand-made bundle and its model for all tests of the runtime, and a cache folder of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mla_runtime
from mla_export.export import export
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing
from tests.runtime.handmade import make_bundle, manifest
from tests.runtime.rig import Rig, make_rig


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stamps of hashed bundles go nowhere near the user's own."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("handmade") / "bundle")


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be broken."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[mla_runtime.Model]:
    with mla_runtime.open(bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A handmade one, and real ones: experts with a float cache, int8 rows, rotary keys in int8 or not."""
    root = tmp_path_factory.mktemp("bundles")
    wide = manifest()["graphs"] | {"prompt": {"file": "prompt.onnx", "chunk": 128}}
    found = {"handmade": make_bundle(root / "handmade"), "wide": make_bundle(root / "wide", graphs=wide)}
    with quick_tracing():
        for name, family, options in (
            ("float", "deepseek_v3", {}),
            ("int8", "deepseek_v2", {"cache": "int8"}),
            ("int8 rope", "minicpm3", {"cache": "int8", "cache_rope": "int8"}),
        ):
            source = make_checkpoint(root / f"{family}-checkpoint", family, num_hidden_layers=2)
            found[name] = export(source, root / name.replace(" ", "-"), max_context=512, chunk=16, **options)
    return found


@pytest.fixture
def rig(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Rig]:
    made = make_rig(bundles["handmade"], tmp_path / "engines")
    yield made
    made.model.close()
    made.ort.close()
