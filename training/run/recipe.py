"""Recipes: a YAML file gives the defaults, the command line overrides any field."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_help import examples, short_help

if TYPE_CHECKING:
    from .recipe_command_parser import RecipeCommandParser


def parse_recipe(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, about: str | None = None, **parser_kwargs: Any
) -> tuple[Any, ...]:
    """Parse `--config recipe.yaml --field value ...` into instances of `dataclass_types`.

    Args:
        dataclass_types: Dataclasses whose fields are the options.
        argv: Command line; None: `sys.argv`.
        about: Docstring of the command, for `--help` and for errors; see `command_help.short_help`.

    Raises:
        ValueError: If the recipe has a key that is no field; the message lists it with the closest field.
        SystemExit: If the command line is wrong; the message ends with the line to type.
    """
    parser, rest = recipe_parser(dataclass_types, argv, about, **parser_kwargs)
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(args=rest, return_remaining_strings=True)
    except ValueError as error:  # of a dataclass that refuses its values
        _note(error, parser)
        raise
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return tuple(parsed[: len(dataclass_types)])


def recipe_parser(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, about: str | None = None, **parser_kwargs: Any
) -> tuple[RecipeCommandParser, list[str]]:
    """The parser of a command line, with the recipe's values as its defaults, and what it has to parse.

    `--help` and `--help-all` are answered here, and end the program.

    Raises:
        ValueError: As `parse_recipe`.
    """
    from .recipe_command_parser import RecipeCommandParser

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    first.add_argument("-h", "--help", action="store_true")
    first.add_argument("--help-all", action="store_true")
    config, rest = first.parse_known_args(argv)
    shown = examples(about)
    example = " ".join(shown[0].replace("\\\n", " ").split()) if shown else None
    parser = RecipeCommandParser(dataclass_types=list(dataclass_types), example=example, **parser_kwargs)
    parser.add_argument("--config", metavar="FILE", help="YAML recipe; its keys are the options below")
    if config.config:
        try:
            recipe = _read(shipped_path(config.config))
            _check_keys(recipe, parser, config.config)
        except ValueError as error:
            _note(error, parser)
            raise
        parser.set_defaults(**recipe)
        for action in parser._actions:
            if action.dest in recipe:
                action.required = False
    if config.help or config.help_all:
        sys.stdout.write(parser.format_help() if config.help_all else short_help(parser, dataclass_types, about))
        sys.exit()
    return parser, rest


def _note(error: ValueError, parser: RecipeCommandParser) -> None:
    """Adds the lines to type, which `error_text` shows."""
    for line in parser.refusal("").splitlines()[1:]:
        error.add_note(line)


def shipped_path(text: str) -> Path:
    """Finds a file in the working directory, or else among those that come with the package.

    `training/recipes/ppo.yaml` is then found from any folder, not only from a clone of the repository.

    Args:
        text: Path as the user wrote it.

    Returns:
        The package's own file if `text` begins with `training/` and the working directory has no such file; otherwise
        `text` unchanged.
    """
    path = Path(text)
    shipped = Path(__file__).parents[2] / path
    return shipped if not path.exists() and path.parts[:1] == ("training",) and shipped.exists() else path


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise ValueError(f"--config: {path} is not a file")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: expected a mapping of option names to values, got {type(recipe).__name__}")
    for key, value in recipe.items():
        if isinstance(value, dict):
            recipe[key] = json.dumps(value)
        elif isinstance(value, list):
            recipe[key] = [json.dumps(entry) if isinstance(entry, dict) else entry for entry in value]
        elif isinstance(value, str):
            recipe[key] = _number(value)
    return recipe


def _number(text: str) -> Any:
    """YAML 1.1 reads 3e-5 as a string; users mean the number."""
    try:
        return float(text) if "e" in text.lower() and text[:1] in "+-.0123456789" else text
    except ValueError:
        return text


def _check_keys(recipe: dict[str, Any], parser: argparse.ArgumentParser, name: str) -> None:
    import difflib

    known = {action.dest for action in parser._actions}
    for key in recipe:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name}: unknown key {key!r}{hint}")
