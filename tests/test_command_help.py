"""`--help` of every command: one screen or few, options in groups, defaults, an example that the command takes; errors too."""

import argparse
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from syvla.command_line import CommandParser
from syvla.training.run.recipe_command_parser import RecipeCommandParser

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
TRAINING = {"syvla-finetune", "syvla-pretrain", "syvla-ppo", "syvla-value-warmup"}
"""Their help has more: see tests/training/run/test_command_help.py."""
MOST_LINES, MOST_OPTIONS_OF_A_GROUP = 120, 20
COMMANDS = sorted(set(SCRIPTS) - TRAINING)


def entry(name):
    module, _, function = SCRIPTS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def shown(name, capsys, monkeypatch, *words) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", [name])  # as the installed script has it
    with pytest.raises(SystemExit) as end:
        entry(name)([*words])
    assert end.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_can_be_read(name, capsys, monkeypatch):
    text = shown(name, capsys, monkeypatch, "--help")
    lines = text.splitlines()
    assert lines[0].startswith(f"usage: {name} "), "the name under which it is installed"
    assert len(lines) <= MOST_LINES
    assert len(lines[0]) < 130, "the usage names what must be given, not every option"
    assert "(default: None)" not in text
    assert re.search(r"^example:\n\s+(\S+=\S+ )?(syvla|accelerate)", text, re.MULTILINE)
    assert "(default: False)" not in text, "of a flag it says nothing"
    for group in re.split(r"^\S.*:$", text, flags=re.MULTILINE)[1:]:
        assert len(re.findall(r"^  -", group, re.MULTILINE)) <= MOST_OPTIONS_OF_A_GROUP


class Parsed(BaseException):
    """The command line was taken; what it would do is not of interest here."""


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_the_example_is_taken_by_the_command(name, capsys, monkeypatch):
    text = shown(name, capsys, monkeypatch, "--help")
    example = " ".join(text.split("\nexample:\n", 1)[1].split("\n\n")[0].replace("\\\n", " ").split())
    program, *words = shlex.split(example)
    assert program == name

    parse = argparse.ArgumentParser.parse_known_args
    depth = []

    def stop(parser, *arguments, **more):
        depth.append(parser)
        try:
            parsed = parse(parser, *arguments, **more)
        finally:
            depth.pop()
        if depth:
            return parsed  # a subcommand's
        if not isinstance(parser, RecipeCommandParser if name in {*TRAINING, "syvla-rl"} else CommandParser):
            return parsed  # --config alone, or what is not the trainer's
        assert not parsed[1], f"unknown: {parsed[1]}"
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    with pytest.raises(Parsed):
        entry(name)(words)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_an_error_ends_with_the_line_to_type(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [name])
    with pytest.raises(SystemExit) as end:
        entry(name)(["--no-such-option"])
    assert end.value.code == 2
    message, *_, example, everything = capsys.readouterr().err.splitlines()
    assert message.startswith(f"{name}: ")
    assert example.startswith(("for example: syvla", "for example: accelerate"))
    assert everything in (f"all options: {name} --help", f"options: {name} --help")
