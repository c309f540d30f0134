"""`syvla`: what to paste into a bug report, and the recipes that travel with the package.

    syvla env
    syvla recipes list
    syvla recipes copy finetune.yaml my_recipe.yaml
    syvla completion

Standard library only, so that `syvla env` works where an installation is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.resources import files
from pathlib import Path

from .command_line import CommandParser

LIBRARIES = (
    "torch",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "accelerate",
    "datasets",
    "av",
    "pyarrow",
    "peft",
    "trl",
    "deepspeed",
    "lerobot",
    "lmms-eval",
    "mujoco",
    "gymnasium",
    "fastapi",
    "websockets",
)
"""Libraries whose versions explain most differences between two machines."""

FOLDERS = ("recipes", "accelerate_configs")
"""Below `syvla.training`: settings of runs, and of `accelerate launch --config_file`."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    parser = CommandParser(
        prog="syvla",
        description=__doc__.split("\n\n")[0],
        example="syvla recipes copy finetune.yaml my_recipe.yaml",
    )
    commands = parser.add_subparsers(parser_class=argparse.ArgumentParser, dest="command", required=True)
    environment = commands.add_parser("env", help="versions and hardware, for a bug report")
    environment.add_argument("--json", action="store_true", help="as JSON")
    recipes = commands.add_parser("recipes", help="recipes and accelerate configurations of the package")
    actions = recipes.add_subparsers(parser_class=argparse.ArgumentParser, dest="action", required=True)
    actions.add_parser("list", help="their names, each with its first comment")
    copy = actions.add_parser("copy", help="write one to a file that you can edit")
    copy.add_argument("name", help="a name of `syvla recipes list`, such as finetune.yaml or zero2.yaml")
    copy.add_argument("target", nargs="?", type=Path, help="file or folder; by default the current folder")
    copy.add_argument("--force", action="store_true", help="replace a file that is there")
    where = actions.add_parser("path", help="print where one lies, for --config or --config_file")
    where.add_argument("name", help="a name of `syvla recipes list`")
    commands.add_parser("completion", help="lines for ~/.bashrc that complete the options of all commands")
    arguments = parser.parse_args(argv)
    if arguments.command == "completion":
        from .completion import commands as installed
        from .completion import completion_lines

        for line in completion_lines(installed()):
            print(line)
    elif arguments.command == "env":
        report = environment_report()
        lines = "\n".join(f"- {name}: {value}" for name, value in report.items())
        print(json.dumps(report, indent=2) if arguments.json else lines)
    elif arguments.action == "list":
        for name, path in recipe_files().items():
            print(f"{name:34} {first_comment(path)}")
    elif arguments.action == "path":
        print(find_recipe(parser, arguments.name))
    else:
        target = copy_recipe(parser, arguments.name, arguments.target or Path(), force=arguments.force)
        print(target)


def environment_report() -> dict[str, str]:
    """Name and value of what differs between machines; no paths of the user and no values of environment variables."""
    try:
        own = distribution("syvla")
        # An editable install is made from a checkout, whose commit may be any.
        direct = json.loads(own.read_text("direct_url.json") or "{}")
        editable = direct.get("dir_info", {}).get("editable", False)
        syvla = own.version + (" (editable install)" if editable else "")
    except PackageNotFoundError:
        syvla = "not installed; imported from a checkout"
    report = {
        "syvla": syvla,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": f"{platform.platform()}, {platform.machine()}",
        "cpu cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for name in LIBRARIES:
        try:
            report[name] = version(name)
        except PackageNotFoundError:
            report[name] = "not installed"
    report.update(_accelerator())
    return report


def _accelerator() -> dict[str, str]:
    """What torch says of the machine; its error where torch cannot be imported, which is worth reporting too."""
    try:
        import torch
    except Exception as error:  # a broken library raises anything, and the report is made for just that case
        return {"torch import": f"fails: {type(error).__name__}: {error}"}
    if not torch.cuda.is_available():
        return {"accelerator": "none", "cuda of torch": str(torch.version.cuda)}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"accelerator": ", ".join(names), "cuda of torch": str(torch.version.cuda)}


def recipe_files() -> dict[str, Path]:
    """Each name with its file: `finetune.yaml`, `tables/rl.yaml`, `accelerate_configs/zero2.yaml`."""
    training = Path(str(files("syvla"))) / "training"
    if not training.is_dir():  # a checkout without links: the folders lie beside the package
        training = Path(__file__).resolve().parents[1] / "training"
    found = {}
    for folder in FOLDERS:
        for path in sorted((training / folder).rglob("*.yaml")):
            name = path.relative_to(training / folder).as_posix()
            found[name if folder == "recipes" else f"{folder}/{name}"] = path
    return found


def first_comment(path: Path) -> str:
    """The first comment of a file, one sentence of it."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return ""


def find_recipe(parser: argparse.ArgumentParser, name: str) -> Path:
    """The file of a name; its folder may be left out where that is clear. Ends the program with the names that exist."""
    known = recipe_files()
    matches = [path for key, path in known.items() if name in (key, key.rpartition("/")[2], path.stem)]
    if len(matches) != 1:
        parser.error(f"{name!r}: expected one of {', '.join(known)}")
    return matches[0]


def copy_recipe(parser: argparse.ArgumentParser, name: str, target: Path, *, force: bool) -> Path:
    """Copy a file, never over another one unless told."""
    source = find_recipe(parser, name)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not force:
        parser.error(f"{target} exists; name another file, or replace it with --force")
    if not target.parent.is_dir():
        parser.error(f"{target.parent} is no folder; make it first")
    shutil.copyfile(source, target)
    return target


if __name__ == "__main__":
    main()
