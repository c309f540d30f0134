"""The distribution's metadata says what the code has: console scripts, extras, the files that it names."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import syvla

ROOT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = METADATA["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirement_names(requirements: list[str]) -> set[str]:
    """Distribution names, with `syvla[a,b]` replaced by what those extras need."""
    names: set[str] = set()
    for requirement in requirements:
        match = re.fullmatch(r"syvla\[(.+)\]", requirement)
        if match:
            for extra in match.group(1).split(","):
                names |= requirement_names(EXTRAS[extra.strip()])
        else:
            names.add(re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-"))  # type: ignore[index]
    return names


@pytest.mark.parametrize(("script", "target"), PROJECT.get("scripts", {}).items())
def test_console_script_names_a_function_that_takes_arguments(script, target):
    module, _, function = target.partition(":")
    main = getattr(importlib.import_module(module), function)
    assert callable(main)
    assert main.__code__.co_argcount >= 1, f"{script}: main(argv=None) can be called by tests and scripts"
    assert len(main.__defaults__ or ()) >= 1, f"{script}: the entry point is called without arguments"


def test_test_extra_covers_every_other_extra_that_the_suite_imports():
    assert requirement_names(EXTRAS["train"] + EXTRAS["sim"] + EXTRAS["peft"]) <= requirement_names(EXTRAS["test"])


def test_every_requirement_has_an_upper_or_lower_bound():
    for requirement in PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]:
        assert requirement.startswith(("syvla[", "types-")) or re.search(r"[<>=]", requirement), requirement


def test_the_distribution_holds_every_package():
    tops = set(METADATA["tool"]["setuptools"]["package-dir"].values()) - {"syvla"}
    folders = {path.parent.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert set(METADATA["tool"]["setuptools"]["packages"]) == {
        "syvla",
        *(".".join(("syvla", *folder.parts)) for folder in folders),
    }


def test_files_that_the_metadata_names_exist():
    for name in [PROJECT["readme"], *PROJECT["license-files"], "CITATION.cff", "CONTRIBUTING.md", "Makefile"]:
        assert (ROOT / name).is_file(), name


def test_citation_agrees_with_the_distribution():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == syvla.__version__
    assert citation["license"] == PROJECT["license"]
    assert "2606.09009" in citation["preferred-citation"]["url"]


def test_no_file_of_a_script_folder_hides_a_library():
    """`accelerate launch training/finetune.py` puts training/ first on the module path."""
    top_level = {name.replace("-", "_") for name in requirement_names(PROJECT["dependencies"] + EXTRAS["all"])}
    top_level |= {"logging", "types", "queue", "statistics", "tables"}  # `tables` is what pandas asks PyTables for
    for path in [*(ROOT / "training").glob("*.py"), *(ROOT / "training").glob("*/__init__.py")]:
        assert (path.parent.name if path.stem == "__init__" else path.stem) not in top_level, path


def test_library_code_does_not_print():
    """Only a command-line entry point (a module with `main`) prints."""
    for package in ("modeling_syvla", "processing", "evaluation", "serving", "training"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
            assert "main" in functions or not calls, f"{path.relative_to(ROOT)}:{calls[0].lineno} prints; use logging"
