"""What the commands that build and run TensorRT engines take."""

from __future__ import annotations

import argparse

from mla_export.argument_types import COUNT, names

BACKENDS = ("tensorrt-rtx", "tensorrt")


def build(parser: argparse.ArgumentParser) -> None:
    """Take what `build` does."""
    parser.add_argument("bundle", help="folder of a bundle of --target portable")
    parser.add_argument(
        "--for",
        dest="cards",
        type=names,
        metavar="CARDS",
        default="this",
        help="compute capabilities like sm86,sm89,sm120, which needs no GPU; this is the one at hand; "
        "jetpack6 says whether the bundle will build there (default: this)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="the flavour of TensorRT (default: tensorrt-rtx for named cards, else what is installed)",
    )
    parser.add_argument(
        "--max-batch", type=COUNT, metavar="B", default=1, help="most sequences at once (default: 1)"
    )
    parser.add_argument(
        "--max-context", type=COUNT, metavar="T", help="most rows of a sequence (default: the bundle's)"
    )
    parser.add_argument(
        "--chunk", type=COUNT, metavar="S", help="most tokens of a prompt at once (default: the bundle's)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="a folder to build into, to carry to its card (default: the cache)"
    )
    parser.add_argument("--rebuild", action="store_true", help="build again what is there")


def selftest(parser: argparse.ArgumentParser) -> None:
    """Take what `selftest` does."""
    parser.add_argument(
        "bundles",
        nargs="*",
        metavar="BUNDLE",
        help="folders of bundles of --target portable (default: five of the sample in the source tree)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="the flavour of TensorRT to build for and run on (default: those that are installed)",
    )
    parser.add_argument(
        "--out",
        metavar="NAME",
        default="mla-export-selftest",
        help="a folder for selftest.json and selftest.html, or the name of one of the two files "
        "(default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are already there")


def engines(parser: argparse.ArgumentParser) -> None:
    """Take the option of commands that run engines."""
    parser.add_argument(
        "--engines",
        metavar="FOLDER",
        help="engines that build --out made on a machine of yours (default: those of the cache, or built)",
    )
