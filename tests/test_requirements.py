"""What the project asks for: modules import, commands load, and the constraints name what pyproject.toml asks for."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = sorted((ROOT / "constraints").glob("python-*.txt"))

# Imports every module below the packages that are given and prints {module: error} of those that fail.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
failed = {}
for package in sys.argv[1:]:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        if module.name.rpartition(".")[2] == "__main__":
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = [type(error).__name__, getattr(error, "name", None), str(error)]
print(json.dumps(failed))
"""
# Brought by extras, or by hand, that the suite does without.
NOT_REQUIRED = {
    *(
        "lmms_eval",
        "open_clip",
        "torchvision",
        "metaworld",
        "gym_aloha",
        "gymnasium_robotics",
        "libero",
        "robosuite",
        "deepspeed",
        "gradio",
    ),
}


@pytest.mark.smoke
def test_every_module_can_be_imported():
    command = [sys.executable, "-c", IMPORT_ALL, "syvla"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    failed = json.loads(result.stdout.splitlines()[-1])
    unexpected = {
        name: error
        for name, error in failed.items()
        if error[0] != "ModuleNotFoundError" or str(error[1]).split(".")[0] not in NOT_REQUIRED
    }
    assert unexpected == {}


@pytest.mark.smoke
def test_every_command_can_be_loaded():
    commands = [entry for entry in distribution("syvla").entry_points if entry.group == "console_scripts"]
    assert {entry.name for entry in commands} == set(PROJECT["project"]["scripts"])
    assert all(callable(entry.load()) for entry in commands)


def requirements(*extras: str) -> list[Requirement]:
    """What the project asks for with some extras, its own extras followed."""
    lines = list(PROJECT["project"]["dependencies"]) if not extras or extras[0] == "test" else []
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, lines):
        if requirement.name == "syvla":
            found += requirements(*sorted(requirement.extras))
        else:
            found.append(requirement)
    return found


def test_every_supported_python_has_its_constraints():
    label = "Programming Language :: Python :: 3."
    claimed = {c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if c.startswith(label)}
    assert {path.stem.removeprefix("python-") for path in CONSTRAINTS} == claimed


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_constraints_pin_what_the_project_asks_for(path):
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# ")
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line) for line in lines), "neither places nor local builds"
    pinned = dict(line.split("==") for line in lines)
    assert "syvla" not in pinned
    for requirement in requirements("test"):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{path.name} has no {name}: install it and run scripts/write_constraints.py"
        assert requirement.specifier.contains(Version(pinned[name])), f"{requirement} but {name} {pinned[name]}"
