"""--help: every argument is explained with its default; --version."""

from __future__ import annotations

import argparse
from importlib.metadata import version

import pytest

from mla_export import cli, estimate, report
from mla_export.cli import main
from mla_export.commands import bench, demo
from mla_export.commands import report as report_command
from mla_export.export import DEFAULT_CHUNK
from mla_export.plan import GROUPS
from mla_export.selftest import run as selftest


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser of the command line, by command; "" is the one in front of them."""
    top = cli.build_parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(cli.COMMANDS)
    return {"": top, **commands.choices}


ACTIONS = [
    pytest.param(parser, action, id=f"{name} {'/'.join(action.option_strings) or action.dest}")
    for name, parser in parsers().items()
    for action in parser._actions
]


@pytest.mark.parametrize(("parser", "action"), ACTIONS)
def test_every_argument_is_explained_with_its_default(
    parser: argparse.ArgumentParser, action: argparse.Action
):
    assert action.help
    shown = action.help % {**vars(action), "prog": parser.prog}
    either_or = [a for group in parser._mutually_exclusive_groups for a in group._group_actions]
    if action.nargs == 0 or action.required or action in either_or:
        return
    assert "(default: " in shown, "what holds if it is not given"
    if action.default not in (None, []):
        assert shown.endswith(f"(default: {action.default})")


def explained(command: str, option: str) -> str:
    (found,) = (a.help for a in parsers()[command]._actions if option in a.option_strings)
    assert found is not None
    return found


def test_defaults_in_words_are_those_of_the_code():
    portable, ort_cpu = DEFAULT_CHUNK["portable"], DEFAULT_CHUNK["ort-cpu"]
    assert f"(default: {portable}, with --target ort-cpu {ort_cpu}, or" in explained("export", "--chunk")
    assert f"(default: {GROUPS[0]})" in explained("export", "--group")
    assert f"(default: {bench.PROMPT}," in explained("bench", "--prompt")
    assert f"(default: {bench.STEPS}," in explained("bench", "--steps")
    assert f"0,{bench.DEPTH} (default: those" in explained("bench", "--depths")
    contexts = ",".join(f"{context // 1024}k" for context in estimate.CONTEXTS)
    assert f"(default: {contexts}," in explained("cost", "--context")
    assert f"else {estimate.CHUNK})" in explained("cost", "--chunk")
    assert portable == estimate.CHUNK
    assert f"(default: {report_command.STEPS})" in explained("report", "--steps")
    assert f"(default: {','.join(map(str, report.DEPTHS))}, as far" in explained("report", "--depths")
    assert "five of the sample" in (parsers()["selftest"]._actions[1].help or "")
    assert len(selftest.FORMS) == 5
    assert f"(default: {demo.SAMPLE.as_posix()})" in explained("demo", "--checkpoint")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mla-export {version('mla-export')}\n"
