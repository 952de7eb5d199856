"""`mla-export build`: a bundle's TensorRT engines, for the card at hand or for cards that are named."""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mla_export import progress
from mla_export.commands.engine_versions import lines
from mla_export.commands.tables import console, print_json, size, table
from mla_runtime.backends.tensorrt import TensorrtBackend
from mla_runtime.bundle import Bundle
from mla_runtime.engines.build import build
from mla_runtime.engines.files import read_record
from mla_runtime.engines.flavour import FLAVOURS, RTX, THIS, Library
from mla_runtime.engines.loading import load_engines
from mla_runtime.engines.profiles import bounds
from mla_runtime.engines.progress import OnProgress
from mla_runtime.engines.publishing import check_free, published
from mla_runtime.engines.record import Built, Limits
from mla_runtime.engines.store import ensure
from mla_runtime.engines.version_check import report
from mla_runtime.engines.wanted import Wanted
from mla_runtime.errors import BackendError, EngineError, InputError
from mla_runtime.session import context_limit
from mla_runtime.wording import counted

JETPACK = re.compile(r"jetpack\d+(\.\d+)?")  # what can be built on a Jetson alone


def run(args: argparse.Namespace) -> int:
    """Build the engines of `args.bundle` for `args.cards` and say what they are."""
    bundle = Bundle.open(args.bundle)
    with progress.task("hashing the bundle", bundle.nbytes, "bytes") as advance:
        bundle.ensure_hashed(advance)
    cards = _cards(args.cards)
    if JETPACK.fullmatch(cards[0]):
        if args.out or args.backend or args.rebuild:
            raise InputError(f"--for {cards[0]} builds nothing: leave --out, --backend and --rebuild out")
        return _check(bundle, cards[0], as_json=args.json)
    library = _library(args.backend, cards)
    limits = _limits(bundle, args)
    built, folder, fresh = _engines(bundle, library, cards, limits, args)
    if cards == [THIS]:
        built = _proved(bundle, library, limits, folder)
    if args.json:
        print_json({"bundle": str(args.bundle), "folder": str(folder), **built.json()})
    else:
        _show(bundle, built, folder, fresh=fresh)
    return 0


def _cards(named: list[str]) -> list[str]:
    """Check the names that `--for` was given."""
    cards = [card.lower() for card in named]
    known = (THIS, *RTX.cards)
    for card in cards:
        if JETPACK.fullmatch(card):
            if len(cards) > 1:
                raise InputError(f"--for {','.join(named)}: a JetPack goes with nothing else; give it alone")
        elif card not in known:
            instead = "; a Jetson builds for itself: jetpack6 says whether it will" if card == "sm87" else ""
            msg = (
                f"--for {','.join(named)}: {card!r} is none of {', '.join(known)}, or a JetPack like jetpack6"
            )
            raise InputError(msg + instead)
    return cards


def _check(bundle: Bundle, jetpack: str, *, as_json: bool) -> int:
    """Say whether a version that is not here will build the bundle; 1 where it will not."""
    found = report(bundle, jetpack)
    if not as_json and (target := bundle.manifest.target) != "portable":
        console().print(f"its graphs are for {target}; TensorRT builds those of --target portable alone")
        return 1
    if as_json:
        print_json({"bundle": str(bundle.path), **found.as_json()})
    else:
        there = f"Nothing was built; there it is (docs/jetson.md): mla-export build {bundle.path}"
        for line in (*lines(found), *([] if found.verdict == "refused" else [there])):
            console().print(line, soft_wrap=True)
    return 1 if found.verdict == "refused" else 0


def _library(backend: str | None, cards: list[str]) -> Library:
    """Load the flavour asked for, or the one that is installed: named cards are the RTX flavour's."""
    if backend is not None:
        return FLAVOURS[backend].load()
    if cards != [THIS]:
        return RTX.load()
    missing = []
    for flavour in FLAVOURS.values():
        try:
            return flavour.load()
        except BackendError as error:
            missing.append(str(error))
    raise BackendError("\n".join(missing))


def _limits(bundle: Bundle, args: argparse.Namespace) -> Limits:
    chunk = bundle.chunk if args.chunk is None else args.chunk
    if chunk > bundle.chunk:
        raise EngineError(
            f"--chunk {chunk}: the bundle's prompt graph is for at most {bundle.chunk} tokens at once; "
            "ask for less, or export it with a larger --chunk"
        )
    return Limits(args.max_batch, context_limit(bundle, args.max_context), chunk)


def _engines(
    bundle: Bundle, library: Library, cards: list[str], limits: Limits, args: argparse.Namespace
) -> tuple[Built, Path, bool]:
    """Find engines or build them; give also where they are, and whether they are new."""
    compiled = []

    def noted(*what: Any) -> Built:
        compiled.append(build(*what))
        return compiled[-1]

    with ExitStack() as stack:
        progress_of = _progress(stack)
        if args.out is None:
            built, folder = ensure(
                bundle, library, cards, limits, rebuild=args.rebuild, on_progress=progress_of, build=noted
            )
            return built, folder, bool(compiled)
        folder = Path(args.out)
        check_free(folder, replaced=args.rebuild)
        wanted = Wanted.of(bundle, library, cards, limits)
        try:
            return published(bundle, library, wanted, folder, build, progress_of), folder, True
        except OSError as cause:
            raise EngineError(f"{folder}: engines cannot be written there ({cause})") from cause


def _proved(bundle: Bundle, library: Library, limits: Limits, folder: Path) -> Built:
    """Run the bundle's canary on engines for the card at hand; give their record with what it said."""
    with progress.task("the canary on the engines"):
        load_engines(library.flavour.name, bundle, TensorrtBackend, limits=limits, folder=folder).close()
    return read_record(folder)


def _progress(stack: ExitStack) -> OnProgress:
    """Give what shows a build as tasks, one after the other: TensorRT tells of each how far it is."""
    done = 0
    advance = None

    def told(label: str, at: int, of: int) -> None:
        nonlocal done, advance
        if at == 0 or advance is None:
            stack.close()
            advance, done = stack.enter_context(progress.task(f"compiling the {label}", of)), 0
        advance(at - done)
        done = at

    return told


def _show(bundle: Bundle, built: Built, folder: Path, *, fresh: bool) -> None:
    cards = ", ".join(built.cards)
    total = sum(engine.size for engine in built.engines)
    console().print(
        f"{bundle.path} on {built.flavour} {built.version} for {cards}: "
        f"{counted(len(built.engines), 'engine')}, {size(total)}, "
        f"{'' if fresh else 'there already, '}built in {built.seconds:.1f} s\n",
        soft_wrap=True,
    )
    rows = [
        [engine.file, phase, *_shapes(bounds(phase, built.limits)), size(engine.size)]
        for engine in built.engines
        for phase in engine.profiles
    ]
    console().print(
        table("Shapes that they take", ["engine", "serves", "B", "S", "T", "size"], rows, numbers=False)
    )
    outside = sum(weight.nbytes for weight in built.outside)
    if outside:
        held = "once for both engines" if len(built.engines) > 1 else "beside the engine"
        console().print(
            f"weights outside the engines: {len(built.outside)} of {size(outside)} in all, in memory {held}, "
            "read from the bundle",
            soft_wrap=True,
        )
    console().print(f"in {folder}", soft_wrap=True)


def _shapes(sizes: dict[str, tuple[int, int, int]]) -> list[str]:
    spans = (sizes[name] for name in "BST")
    return [f"{low:,}" if low == high else f"{low:,} … {high:,}" for low, _, high in spans]
