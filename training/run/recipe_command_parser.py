"""The parser of the commands whose options are the fields of dataclasses."""

from __future__ import annotations

from transformers import HfArgumentParser

from syvla.command_line import CommandParser


class RecipeCommandParser(CommandParser, HfArgumentParser):
    """transformers' parser of dataclasses, with the help and the errors of the other commands.

    Args:
        dataclass_types: Whose fields are the options.
        example: As for `CommandParser`.
        **options: As for `ArgumentParser`.
    """

    everything = "options"  # --help shows ours and the common ones; --help-all shows all
