"""The documents are true where a program can tell: commands parse, exit codes and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mla_export import cli
from mla_export.commands.demo import NEXT

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "SECURITY.md"]
PAGES = sorted((ROOT / "samples").glob("*.md"))  # their commands are run by test_samples.py
COMMAND = re.compile(r"^ {4}\$? ?mla-export (?!COMMAND)(.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def shown_commands() -> list[str]:
    documents = [line for path in DOCUMENTS for line in COMMAND.findall(path.read_text(encoding="utf-8"))]
    return [*documents, *NEXT]


@pytest.mark.parametrize("line", shown_commands())
def test_shown_commands_parse(line: str):
    cli.build_parser().parse_args(shlex.split(line, comments=True))


def test_there_are_commands_to_check():
    assert {line.split()[0] for line in shown_commands()} >= {"inspect", "export", "verify", "run", "bench"}


def test_every_command_and_exit_code_is_documented():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in cli.COMMANDS:
        assert f"| `{command}" in text
    codes = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == codes


SHARED = {"--json", "--quiet", "--backend", "--engines", "--threads"}  # told once, for several commands


def test_every_option_is_documented_where_its_command_is():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    commands = cli.build_parser()._subparsers._group_actions[0].choices
    everywhere = {"--help", *SHARED}
    sections = dict(re.findall(r"^## ([\w-]+)\n(.+?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for name, command in commands.items():
        for option in {o for action in command._actions for o in action.option_strings if o[:2] == "--"}:
            where = text if option in everywhere else sections[name]
            assert f"`{option}`" in where or f"`{option} " in where, f"{name} {option}"


def test_the_options_of_most_commands_are_documented_as_they_are():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    commands = cli.build_parser()._subparsers._group_actions[0].choices
    rows = dict(re.findall(r"^\| `(--\w+)[^|]*\| ([^|]+) \|", text.partition("## ")[0], re.MULTILINE))
    assert set(rows) == SHARED
    for option, said in rows.items():
        has = {name for name, command in commands.items() if option in command._option_string_actions}
        told = set(re.findall(r"`([\w-]+)`", said))
        assert has == (set(commands) - told if said.startswith("all") else told), option


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
