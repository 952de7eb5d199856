"""The store of engines: what is found, what is built, what is refused, and what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mla_runtime.bundle import Bundle
from mla_runtime.engines import store, wanted
from mla_runtime.engines.files import read_record, write_record
from mla_runtime.engines.gpu import Gpu
from mla_runtime.engines.record import Built, Limits
from mla_runtime.errors import EngineError
from mla_runtime.manifest import digest
from tests.runtime.engine_builds import BYTES, CARDS, JETSON, LIMITS, Builds, build, content, library

RTX_CARD = Gpu("NVIDIA GeForce RTX 3060", (8, 6), 12 * 2**30, (13, 0))
H200 = Gpu("NVIDIA H200", (9, 0), 139 * 2**30, (13, 0))
ORIN = Gpu("Orin", (8, 7), 8 * 2**30, (12, 6))


@pytest.fixture
def opened(folder: Path) -> Bundle:
    return Bundle.open(folder)


@pytest.fixture
def builds() -> Builds:
    return Builds()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a GPU into the machine; without it there is none."""
    monkeypatch.setattr(wanted, "gpu_at_hand", lambda: None)
    return lambda gpu: monkeypatch.setattr(wanted, "gpu_at_hand", lambda: gpu)


def first(path: Path) -> Path:
    return path / "step.engine"


def test_engines_are_built_once_and_found_after(opened: Bundle, builds: Builds, said: list[str]):
    built, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds, say=said.append)
    again = store.ensure(opened, library(), CARDS, LIMITS, build=builds, say=said.append)
    assert again == (built, where)
    assert builds.asked == [(CARDS, LIMITS)]
    assert said == []
    assert first(where).read_bytes() == content(2)
    assert sorted(path.name for path in where.iterdir()) == ["engine.json", "prompt.engine", "step.engine"]


def test_engines_lie_in_the_users_cache(opened: Bundle, builds: Builds, cache_home: Path):
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    assert where.is_relative_to(cache_home / "mla-export" / "engines")
    if os.name == "posix":
        assert where.parent.stat().st_mode & 0o077 == 0, "engines are code: nobody else may write them"


def test_engines_for_several_cards_and_larger_limits_serve(opened: Bundle, builds: Builds):
    store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    for cards in (("sm86",), ("sm89",), CARDS):
        store.ensure(opened, library(), cards, Limits(1, 32, 7), build=builds)
    assert builds.count == 1


@pytest.mark.parametrize(
    ("cards", "limits", "version", "why"),
    [
        (("sm120",), LIMITS, "1.7.1", "are for sm86, sm89, not for sm120"),
        (("sm86", "sm120"), LIMITS, "1.7.1", "are for sm86, sm89, not for sm120"),
        (CARDS, Limits(3, 64, 7), "1.7.1", "take 2 sequences of 64 rows in chunks of 7, and 3 sequences"),
        (CARDS, Limits(2, 65, 7), "1.7.1", "2 sequences of 65 rows in chunks of 7 are asked for"),
        (CARDS, Limits(2, 64, 8), "1.7.1", "in chunks of 8 are asked for"),
        (CARDS, LIMITS, "1.7.2", "are of tensorrt-rtx 1.7.1, and 1.7.2 is installed"),
    ],
)
def test_what_does_not_fit_is_built_anew(
    opened: Bundle, builds: Builds, said: list[str], cards: Any, limits: Limits, version: str, why: str
):
    _, old = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    with pytest.raises(EngineError, match="no engines for tensorrt-rtx") as refused:
        store.ensure(opened, library(version), cards, limits, build=None)
    assert why in str(refused.value)
    assert f"build them: mla-export build {opened.path}" in str(refused.value)
    _, new = store.ensure(opened, library(version), cards, limits, build=builds, say=said.append)
    assert builds.count == 2
    assert new != old
    if version == "1.7.1":
        assert not said, "other cards and shapes are no fault of what is there"
    else:
        assert why in said[0]
        assert said[0].endswith("; building others")
    assert read_record(old).cards == CARDS, "the old ones still serve whom they fit"


def test_a_bundle_exported_again_has_engines_of_its_own(folder: Path, builds: Builds):
    _, old = store.ensure(Bundle.open(folder), library(), CARDS, LIMITS, build=builds)
    raw = json.loads((folder / "bundle.json").read_text())
    raw["generator"] = {"mla-export": "0.2.0"}
    raw["sha256"] = digest(raw)
    (folder / "bundle.json").write_text(json.dumps(raw))
    built, new = store.ensure(Bundle.open(folder), library(), CARDS, LIMITS, build=builds)
    assert builds.count == 2
    assert old.parent != new.parent
    assert built.bundle == raw["sha256"]


def test_rebuild_replaces(opened: Bundle, builds: Builds):
    _, old = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    _, new = store.ensure(opened, library(), CARDS, LIMITS, build=builds, rebuild=True)
    assert old == new
    assert first(new).read_bytes() == content(4)
    assert [path.name for path in new.parent.iterdir()] == [new.name]


def test_this_is_the_gpu_at_hand(opened: Bundle, builds: Builds, here: Any):
    here(RTX_CARD)
    built, where = store.ensure(opened, library(), ("this",), LIMITS, build=builds)
    assert builds.asked == [(("sm86",), LIMITS)]
    assert (built.cards, built.gpu) == (("sm86",), None)
    assert store.ensure(opened, library(), ("sm86",), LIMITS, build=builds)[1] == where


def test_a_card_that_the_flavour_does_not_know_is_left_to_it_to_refuse(
    opened: Bundle, builds: Builds, here: Any
):
    here(H200)
    built, _ = store.ensure(opened, library(), ("this",), LIMITS, build=builds)
    assert builds.asked == [(("this",), LIMITS)]
    assert built.cards == ("sm90",)


def test_engines_of_the_other_flavour_are_for_one_gpu(
    opened: Bundle, builds: Builds, here: Any, said: list[str]
):
    here(ORIN)
    built, where = store.ensure(opened, JETSON, ("this",), LIMITS, build=builds)
    assert builds.asked == [(("this",), LIMITS)]
    assert (built.cards, built.gpu) == (("sm87",), "Orin")
    here(replace(ORIN, name="Orin (nvgpu)"))
    _, other = store.ensure(opened, JETSON, ("this",), LIMITS, build=builds, say=said.append)
    assert other != where
    assert "were built on Orin, and this is Orin (nvgpu)" in said[0]


@pytest.mark.parametrize(
    ("of", "hint"), [(library(), "name cards to compile for: --for sm80"), (JETSON, "so build there")]
)
def test_without_a_gpu_there_is_no_this(opened: Bundle, builds: Builds, here: Any, of: Any, hint: str):
    with pytest.raises(EngineError, match="no NVIDIA GPU is to be seen here") as refused:
        store.ensure(opened, of, ("this",), LIMITS, build=builds)
    assert hint in str(refused.value)
    assert builds.count == 0


def test_no_cards_are_no_request(opened: Bundle, builds: Builds):
    with pytest.raises(EngineError, match="no cards"):
        store.ensure(opened, library(), (), LIMITS, build=builds)


def damage(where: Path, name: str, place: int) -> None:
    data = bytearray((where / name).read_bytes())
    data[place % len(data)] ^= 1 << (place % 8)
    (where / name).write_bytes(bytes(data))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(["step.engine", "prompt.engine", "engine.json"]), place=st.integers(0, BYTES - 1))
def test_a_flipped_bit_is_found_wherever_it_is(opened: Bundle, name: str, place: int):
    builds, said = Builds(), list[str]()
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds, rebuild=True)
    store.ensure(opened, library(), CARDS, LIMITS, build=None)
    damage(where, name, place)
    with pytest.raises(EngineError, match="no engines for") as refused:
        store.ensure(opened, library(), CARDS, LIMITS, build=None)
    assert len(str(refused.value).splitlines()) == 1
    store.ensure(opened, library(), CARDS, LIMITS, build=builds, say=said.append)
    assert builds.count == 2
    assert len(said) == 1
    store.ensure(opened, library(), CARDS, LIMITS, build=None)


def test_damaged_engines_go_when_others_are_built(opened: Bundle, builds: Builds, said: list[str]):
    _, many = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    damage(many, "step.engine", 7)
    _, one = store.ensure(opened, library(), CARDS[:1], LIMITS, build=builds, say=said.append)
    assert len(said) == 1
    assert not many.exists()
    (one / "engine.json").write_text('{"format": 2}')
    _, other = store.ensure(opened, library(), CARDS, LIMITS, build=builds, say=said.append)
    assert one.exists(), "a newer version may have written it"
    assert other != one


def cut(where: Path) -> None:
    first(where).write_bytes(first(where).read_bytes()[:-1])


def empty(where: Path) -> None:
    first(where).write_bytes(b"")


def gone(where: Path) -> None:
    first(where).unlink()


def linked(where: Path) -> None:
    outside = where.parent.parent.parent / "outside.engine"
    first(where).replace(outside)
    first(where).symlink_to(outside)


def no_record(where: Path) -> None:
    (where / "engine.json").unlink()


def newer(where: Path) -> None:
    (where / "engine.json").write_text('{"format": 2}')


def no_object(where: Path) -> None:
    (where / "engine.json").write_text("[]")


def escaping(where: Path) -> None:
    """A record that is sound, of a file that is not in the folder."""
    built = read_record(where)
    step, prompt = built.engines
    write_record(replace(built, engines=(replace(step, file="../step.engine"), prompt)), where)


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (cut, "2999 bytes, not the 3000"),
        (empty, "0 bytes, not the 3000"),
        (gone, "is missing or cannot be read"),
        (linked, "is a link that leads out of its folder"),
        (no_record, "no engines here, there is no engine.json"),
        (newer, "a record of format 2, and this version reads 1"),
        (no_object, "holds a list"),
        (escaping, "is not the plain name of a file"),
    ],
)
def test_broken_engines_are_one_sentence_and_built_again(
    opened: Bundle, builds: Builds, said: list[str], break_it: Any, why: str
):
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    break_it(where)
    with pytest.raises(EngineError) as refused:
        store.ensure(opened, library(), CARDS, LIMITS, build=None)
    assert why in str(refused.value)
    with pytest.raises(EngineError) as refused:
        store.taken(where, opened, library(), CARDS, LIMITS)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    _, again = store.ensure(opened, library(), CARDS, LIMITS, build=builds, say=said.append)
    assert builds.count == 2
    assert why in said[0]
    assert again == where
    assert store.ensure(opened, library(), CARDS, LIMITS, build=None)[1] == where


def test_engines_inside_a_bundle_are_not_looked_at(folder: Path, builds: Builds, tmp_path: Path):
    opened = Bundle.open(folder)
    inside = folder / "engines"
    inside.mkdir()
    write_record(build(opened, library(), CARDS, LIMITS, inside), inside)
    for file in inside.iterdir():
        shutil.copy(file, folder / file.name)
    with pytest.raises(EngineError, match="no engines for"):
        store.ensure(opened, library(), CARDS, LIMITS, build=None)
    store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    assert builds.count == 1
    link = tmp_path / "mine"
    link.symlink_to(inside, target_is_directory=True)
    for named in (inside, folder, link):
        with pytest.raises(EngineError, match="engines that came with a bundle are never loaded"):
            store.taken(named, opened, library(), CARDS, LIMITS)


def test_a_folder_that_the_user_names_is_taken_if_it_fits(opened: Bundle, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    built = build(opened, library(), CARDS, LIMITS, mine)
    write_record(built, mine)
    assert store.taken(mine, opened, library(), ("sm89",), Limits(1, 1, 1)) == (built, mine.resolve())
    with pytest.raises(EngineError, match=r"these engines are for sm86, sm89, not for sm120; build them"):
        store.taken(mine, opened, library(), ("sm120",), LIMITS)
    with pytest.raises(EngineError, match=r"are of tensorrt-rtx 1[.]7[.]1, and 1[.]8[.]0 is installed"):
        store.taken(mine, opened, library("1.8.0"), CARDS, LIMITS)
    write_record(replace(built, bundle="0" * 64), mine)
    with pytest.raises(EngineError, match="were built from another bundle"):
        store.taken(mine, opened, library(), CARDS, LIMITS)


def test_a_disk_that_is_full_leaves_the_old_engines(opened: Bundle, builds: Builds):
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds)

    def full(*_: Any) -> Built:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EngineError, match=r"No space left on device.*set XDG_CACHE_HOME") as refused:
        store.ensure(opened, library(), CARDS, LIMITS, build=full, rebuild=True)
    assert str(store.engines_folder()) in str(refused.value)
    assert [path.name for path in where.parent.iterdir()] == [where.name]
    assert store.ensure(opened, library(), CARDS, LIMITS, build=None)[1] == where


def test_a_cache_that_cannot_be_written_is_told(opened: Bundle, builds: Builds, cache_home: Path):
    cache_home.mkdir()
    (cache_home / "mla-export").write_text("a file where a folder belongs")  # holds for root too
    with pytest.raises(EngineError, match=r"engines cannot be kept there.*XDG_CACHE_HOME"):
        store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    assert builds.count == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_engines_in_a_read_only_cache_are_found(opened: Bundle, builds: Builds):
    _, where = store.ensure(opened, library(), CARDS, LIMITS, build=builds)
    try:
        for path in (where, where.parent):
            path.chmod(0o500)
        assert store.ensure(opened, library(), CARDS, LIMITS, build=None)[1] == where
    finally:
        for path in (where.parent, where):
            path.chmod(0o700)


@pytest.mark.parametrize("error", [EngineError("the parser refuses node 7"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(opened: Bundle, error: BaseException):
    def fails(bundle: Bundle, found: Any, cards: Any, limits: Limits, folder: Path, progress: Any) -> Built:
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        store.ensure(opened, library(), CARDS, LIMITS, build=fails)
    (home,) = (path for path in store.engines_folder().iterdir() if path.name != "locks")
    assert list(home.iterdir()) == []


def test_engines_that_are_not_what_their_record_says_are_not_published(opened: Bundle):
    def lies(bundle: Bundle, found: Any, cards: Any, limits: Limits, folder: Path, progress: Any) -> Built:
        made = build(bundle, found, cards, limits, folder)
        first(folder).write_bytes(content(99))
        return made

    with pytest.raises(EngineError, match=r"its SHA-256 is not that of engine.json"):
        store.ensure(opened, library(), CARDS, LIMITS, build=lies)
    with pytest.raises(EngineError, match="no engines for"):
        store.ensure(opened, library(), CARDS, LIMITS, build=None)


def test_the_store_does_not_grow_without_end(opened: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch):
    wheres = []
    for place, version in enumerate(("1.1", "1.2", "1.3")):
        wheres.append(store.ensure(opened, library(version), CARDS, LIMITS, build=builds)[1])
        os.utime(wheres[-1] / "engine.json", (place, place))
    store.ensure(opened, library("1.1"), CARDS, LIMITS, build=None)  # used last
    monkeypatch.setattr(store, "KEPT_BYTES", 5 * BYTES)  # two of them, and their records
    _, new = store.ensure(opened, library("1.4"), CARDS, LIMITS, build=builds)
    assert set(new.parent.iterdir()) == {wheres[0], new}
