"""What can be checked of the LeRobot plug-in without LeRobot: names that LeRobot looks up, metadata, the import's message.

The checks that need LeRobot are in `integrations/lerobot_policy_syvla/tests`; `run_checks.sh` runs them.
"""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import syvla

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "integrations" / "lerobot_policy_syvla"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
PACKAGE = FOLDER / PROJECT["name"]


def parsed(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def definition(tree: ast.Module, name: str):
    return next(node for node in tree.body if getattr(node, "name", None) == name)


def test_lerobot_finds_the_distribution_and_imports_a_module_of_the_same_name():
    assert PROJECT["name"].startswith("lerobot_policy_"), "LeRobot compares with underscores, literally"
    assert (PACKAGE / "__init__.py").is_file()


def test_classes_and_functions_have_the_names_that_lerobot_derives():
    config = definition(parsed("configuration_syvla"), "LeRobotSyVLAConfig")
    assert [ast.unparse(decorator) for decorator in config.decorator_list] == [
        "PreTrainedConfig.register_subclass('syvla')",
        "dataclass",
    ]
    # `get_policy_class` makes the one name out of the other
    policy = definition(parsed("modeling_syvla"), config.name.removesuffix("Config") + "Policy")
    create = next(node for node in policy.body if getattr(node, "name", None) == "__init__")
    assert create.args.kwarg is not None, "LeRobot's factory passes more than the config"
    make = definition(parsed("processor_syvla"), "make_syvla_pre_post_processors")
    assert [argument.arg for argument in make.args.args] == ["config", "dataset_stats"]


def test_processor_steps_are_registered_by_name():
    """A step without a name would be imported from a path in a file of the Hub."""
    steps = [
        node
        for node in parsed("processor_syvla").body
        if isinstance(node, ast.ClassDef) and "ProcessorStep" in map(ast.unparse, node.bases)
    ]
    assert len(steps) == 2
    for step in steps:
        assert any("ProcessorStepRegistry.register(" in ast.unparse(d) for d in step.decorator_list), step.name


def test_the_import_registers_steps_and_environment():
    imported = {node.module for node in parsed("__init__").body if isinstance(node, ast.ImportFrom)}
    assert {"configuration_syvla", "processor_syvla", "tabletop_environment"} <= imported


def test_metadata_agrees_with_syvla():
    main = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert PROJECT["version"] == syvla.__version__
    assert PROJECT["license"] == main["license"]
    assert PROJECT["requires-python"] == ">=3.12"
    assert "syvla" in PROJECT["dependencies"]
    assert "lerobot>=0.6,<0.7" in PROJECT["dependencies"]
    for line in PROJECT["dependencies"]:
        assert line == "syvla" or ">=" in line, f"{line}: give a bound"


def test_files_that_the_metadata_names_exist():
    assert (FOLDER / PROJECT["readme"]).is_file()
    assert os.access(FOLDER / "run_checks.sh", os.X_OK)


@pytest.mark.parametrize("module", ["lerobot_policy_syvla", "lerobot_policy_syvla.modeling_syvla"])
def test_without_lerobot_the_import_says_what_to_install(module):
    script = f"import sys; sys.modules['lerobot'] = None; import {module}"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "ImportError: lerobot_policy_syvla needs LeRobot 0.6" in result.stderr
    assert "pip install 'lerobot>=0.6,<0.7'" in result.stderr
