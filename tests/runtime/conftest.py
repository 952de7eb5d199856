"""One hand-made bundle and its model for all tests of the runtime, and a cache folder of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mla_runtime
from tests.runtime.handmade import make_bundle
from tests.runtime.rig import Rig, make_bundles, make_rig


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
    return make_bundles(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def rig(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Rig]:
    made = make_rig(bundles["handmade"], tmp_path / "engines")
    yield made
    made.model.close()
    made.ort.close()
