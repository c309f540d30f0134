"""The parser of the project's commands: short usage, options in groups, an example, errors that end with what to type."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .known_errors import anchor_of


def error_text(command: str, error: BaseException) -> str:
    """What a command prints for an error that ends it: message, where it is explained if it is, the error's notes."""
    anchor = anchor_of(str(error))
    explained = [] if anchor is None else [f"explained in docs/troubleshooting.md#{anchor}"]
    return "\n".join([f"{command}: {error}", *explained, *getattr(error, "__notes__", ())])


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose help a person can read.

    Args:
        example: A whole line to type, shown below the options and with every error.
        **options: As for `ArgumentParser`.

    Attributes:
        everything: What `--help` shows, in the last line of an error.
    """

    everything = "all options"

    def __init__(self, *, example: str | None = None, **options: Any) -> None:
        super().__init__(**{"formatter_class": QuietDefaults, **options})
        self.example = example

    def arrange(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Moves options that are in no group yet into groups, title to the options' names; help alone changes."""
        for title, names in groups.items():
            group = self.add_argument_group(title)
            for name in names:
                action = self._option_string_actions[name]
                self._optionals._group_actions.remove(action)
                group._group_actions.append(action)

    def format_usage(self) -> str:
        """One line: what must be given, and `[options]` for the rest."""
        words = [self.prog]
        optional = [action for action in self._actions if action.option_strings and not action.required]
        words += ["[options]"] if optional else []
        for action in self._actions:
            if action.option_strings and action.required:
                kind = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else action.dest.upper())
                words += [action.option_strings[-1], str(kind)]
        for action in self._actions:
            if not action.option_strings and action.nargs != "?":
                words.append(str(action.metavar or action.dest))
        return f"usage: {' '.join(words)}\n"

    def format_help(self) -> str:
        """Usage, description, groups of options, epilog, example."""
        usage, self.usage = self.usage, self.format_usage().removeprefix("usage: ").strip().replace("%", "%%")
        try:
            text = super().format_help()
        finally:
            self.usage = usage
        return text if self.example is None else f"{text}\nexample:\n  {self.example}\n"

    def error(self, message: str) -> NoReturn:
        """Ends the program with the message, and the line to type."""
        self.exit(2, self.refusal(message))

    def refusal(self, message: object) -> str:
        """The lines that say what is wrong, and what to type instead."""
        example = "" if self.example is None else f"for example: {self.example}\n"
        return f"{self.prog}: error: {message}\n{example}{self.everything}: {self.prog} --help\n"


class QuietDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something: neither None, nor an empty list, nor that a flag is not set."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.nargs == 0 and action.default is False
        silent = unset or action.default is None or action.default in ([], (), "")
        stated = "(default" in (action.help or "")
        return action.help if silent or stated else super()._get_help_string(action)
