"""What `--help` of a training command prints: our own options first, in groups; `--help-all` prints transformers' too."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence

COMMON = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "gradient_checkpointing",
    "use_cpu",
    "seed",
    "dataloader_num_workers",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "report_to",
    "deepspeed",
)
"""Fields of `transformers.TrainingArguments` that most runs set."""


def own_fields(dataclass_type: type) -> list[str]:
    """Names of the fields that a class of ours declares, those of its parents of ours included, in order."""
    ours = [c for c in reversed(dataclass_type.__mro__) if c.__module__.split(".")[0] == "syvla"]
    declared = dict.fromkeys(name for c in ours for name in vars(c).get("__annotations__", ()))
    names = {field.name for field in dataclasses.fields(dataclass_type) if field.init}
    return [name for name in declared if name in names]


def examples(about: str | None) -> list[str]:
    """The indented paragraphs of a command's docstring, without the indent: lines to type."""
    return [
        textwrap.dedent(text) for text in inspect.cleandoc(about or "").split("\n\n")[1:] if text.startswith("    ")
    ]


def short_help(parser: argparse.ArgumentParser, dataclass_types: Sequence[type], about: str | None = None) -> str:
    """The text of `--help`.

    Args:
        parser: Holds every option, with the recipe's values as defaults.
        dataclass_types: Whose fields they are: one group each, titled with the first line of its docstring.
        about: Docstring of the command. Its first paragraph is the description, its indented lines are the example.
    """
    shown = argparse.ArgumentParser(
        prog=parser.prog,
        usage=f"{parser.prog} [--config FILE] [options]",
        description=inspect.cleandoc(about or "").split("\n\n")[0].replace("\n", " "),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        add_help=False,
    )
    # Reversed, since a true default has a second option after it, --no_NAME, for the same field.
    known = {action.dest: action for action in reversed(parser._actions)}
    left = {name for name in known if name not in ("help", "config")}
    shown.add_argument(
        "--config", metavar="FILE", help="YAML recipe; its keys are the options below", default=argparse.SUPPRESS
    )
    shown.add_argument("-h", "--help", action="store_true", help="this text", default=argparse.SUPPRESS)
    shown.add_argument("--help-all", action="store_true", help="every option", default=argparse.SUPPRESS)
    for dataclass_type in dataclass_types:
        trains = "output_dir" in {field.name for field in dataclasses.fields(dataclass_type)}
        names = [name for name in own_fields(dataclass_type) if not (trains and name in COMMON)]
        title = inspect.cleandoc(dataclass_type.__doc__ or "").partition("\n")[0].rstrip(".")
        _add_group(shown, title, [name for name in names if name in left], known)
        left -= set(names)
        if trains:
            _add_group(
                shown,
                "Of every run (fields of transformers' TrainingArguments)",
                [n for n in COMMON if n in left],
                known,
            )
            left -= set(COMMON)
    text = shown.format_help()
    if shown_examples := examples(about):
        text += "\nexample:\n" + textwrap.indent("\n\n".join(shown_examples), "  ") + "\n"
    return text + f"\n{len(left)} more options, of transformers' TrainingArguments: {parser.prog} --help-all\n"


def _add_group(
    shown: argparse.ArgumentParser, title: str, names: Sequence[str], known: dict[str, argparse.Action]
) -> None:
    group = shown.add_argument_group(title)
    for name in names:
        action = known[name]
        group.add_argument(
            f"--{name}",
            help=action.help,
            default=argparse.SUPPRESS if action.default in (None, [], "", argparse.SUPPRESS) else action.default,
            metavar="{" + ",".join(map(str, action.choices)) + "}" if action.choices else _kind(action),
            nargs=action.nargs if action.nargs in ("*", "+") else None,
        )


def _kind(action: argparse.Action) -> str:
    """What stands for the value: TRUE|FALSE, a number's type, or TEXT."""
    if isinstance(action.default, bool) or action.nargs == "?":
        return "TRUE|FALSE"
    kind = getattr(action.type, "__name__", "")
    return {"int": "INT", "float": "NUMBER"}.get(kind, "TEXT")
