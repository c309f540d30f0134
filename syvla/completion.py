"""What makes bash complete the options of the commands: one `complete` line each, read from their `--help`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points


def commands() -> list[str]:
    """Names of the installed commands of this project."""
    found = {entry.name for entry in entry_points(group="console_scripts")}
    return sorted(name for name in found if re.fullmatch(r"syvla(-[a-z-]+)?", name))


def completion_lines(names: list[str]) -> Iterator[str]:
    """Lines for a shell's start-up file; file names are completed where no option fits.

    Args:
        names: Installed commands. Their modules are imported.
    """
    for name in names:
        words = dict.fromkeys(_words(name))
        yield f'complete -o default -W "{" ".join(words)}" {name}'


def _words(name: str) -> list[str]:
    """Options, and the subcommands, which stand in braces."""
    text = _printed(name, "--help-all") if "--help-all" in (short := _printed(name, "--help")) else short
    subcommands = re.search(r"^ +\{([a-z,-]+)\}", text, re.MULTILINE)
    options: list[str] = re.findall(r"^  (?:-\w, )?(--[a-z][\w-]*)", text, re.MULTILINE)
    return [*(subcommands[1].split(",") if subcommands else []), *options]


def _printed(name: str, option: str) -> str:
    (entry,) = entry_points(group="console_scripts", name=name)
    with io.StringIO() as out:
        with redirect_stdout(out), suppress(SystemExit):
            entry.load()([option])
        return out.getvalue()
