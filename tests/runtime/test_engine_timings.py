"""Times of kernels are kept from build to build, for one GPU and one version."""

from __future__ import annotations

import pytest

from mla_runtime.engines import timing
from mla_runtime.engines.gpu import Gpu
from tests.runtime.engine_builds import JETSON, library

ORIN = Gpu("Orin", (8, 7), 16 << 30, (12, 6))


class Config:
    """A builder's configuration that takes only what begins as a cache does."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.measured = b"cache: measured"

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.given.append(cache)
        return cache == b"" or cache.startswith(b"cache")

    def get_timing_cache(self) -> Config:
        return self

    def serialize(self) -> bytes:
        return self.measured


@pytest.fixture(autouse=True)
def orin(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "gpu_at_hand", lambda: ORIN)


def build(which=JETSON) -> list[bytes]:
    config = Config()
    with timing.kept_timings(which, config):
        pass
    return config.given


def test_the_next_build_gets_what_the_last_one_measured():
    assert build() == [b""]
    assert build() == [b"cache: measured"]


def test_another_gpu_and_another_version_measure_for_themselves(monkeypatch):
    build()
    assert build(library("10.4.0", JETSON.flavour)) == [b""]
    monkeypatch.setattr(timing, "gpu_at_hand", lambda: Gpu("Thor", (11, 0), 1, (13, 0)))
    assert build() == [b""]


def test_a_damaged_cache_is_replaced(tmp_path):
    build()
    (file,) = (tmp_path / "mla-export" / "timings").iterdir()
    file.write_bytes(b"damaged")
    assert build() == [b"damaged", b""]
    assert build() == [b"cache: measured"]


def test_what_cannot_be_kept_is_measured_again(tmp_path):
    (tmp_path / "mla-export").write_bytes(b"no folder")
    assert build() == [b""]
    assert build() == [b""]


def test_a_build_that_failed_keeps_nothing(tmp_path):
    with pytest.raises(RuntimeError), timing.kept_timings(JETSON, Config()):
        raise RuntimeError
    assert not (tmp_path / "mla-export").exists()


def test_the_flavour_that_times_nothing_is_left_alone():
    assert build(library()) == []
