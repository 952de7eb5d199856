"""The `mla-export` command: argument parsing only; each subcommand's work is in `mla_export.commands`.

Results go to stdout (`--json` for programs), progress and errors to stderr. Exit codes are `EXIT_*`
below and in docs/commands.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from mla_export.arguments import COMMANDS
from mla_export.extras import EXTRAS, not_installed
from mla_export.stdout import StdoutError, abandon_stdout, guarded_stdout
from mla_runtime.errors import (
    BackendError,
    CapacityError,
    EngineError,
    ExportError,
    MlaError,
    VerificationError,
)

EXIT_OK = 0
EXIT_UNVERIFIED = 1  # verification ran and its answer is no
EXIT_BAD_INPUT = 2  # the command line, a checkpoint, a bundle or a prompt cannot be taken
EXIT_CANNOT = 3  # a fit request that this machine or installation cannot carry out
EXIT_NOT_ON_HARDWARE = 4  # a self-test in which nothing failed and no engine ran on a card
EXIT_BUG = 70  # a bug of mla-export
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_PIPE_CLOSED = 141  # whoever read stdout stopped reading


class _Version(argparse.Action):
    """Print the installed version and end; it is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002 - argparse's
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"{parser.prog} {version('mla-export')}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="mla-export",
        description="Export models with Multi-head Latent Attention to ONNX, prove it, decode with it.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and end")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", help="one of these; COMMAND --help has its options"
    )
    for name, (add_arguments, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{name}: {summary}.")
        add_arguments(command)
        if name != "demo":
            command.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        command.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; every expected error is one message on stderr."""
    try:
        with guarded_stdout():
            args = build_parser().parse_args(argv)
            from mla_export.progress import reporting

            with reporting(quiet=args.quiet):
                module = f"mla_export.commands.{args.command.replace('-', '_')}"
                code: int = importlib.import_module(module).run(args)
    except MlaError as error:
        return _fail(f"{error}", _code_of(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            return _bug()
        return _fail(not_installed([error.name]), EXIT_CANNOT)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        abandon_stdout()
        return EXIT_PIPE_CLOSED
    except StdoutError as error:
        abandon_stdout()
        return _fail(f"stdout cannot be written ({error}); free space, or send it elsewhere", EXIT_CANNOT)
    except Exception:
        return _bug()
    return code


def _code_of(error: MlaError) -> int:
    if isinstance(error, VerificationError):
        return EXIT_UNVERIFIED
    if isinstance(error, ExportError | BackendError | CapacityError | EngineError):
        return EXIT_CANNOT
    return EXIT_BAD_INPUT


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"mla-export: {message}\n")
    return code


def _bug() -> int:
    traceback.print_exc()
    return _fail("this is a bug in mla-export; please report it with the lines above", EXIT_BUG)
