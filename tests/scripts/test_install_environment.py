"""What `make demo` and `make test` say where they cannot install; nothing is downloaded."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install_environment.sh"


def install(folder, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        ["bash", SCRIPT, folder],
        env={**own, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An empty environment of the running Python, with pip from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environments") / "venv"
    venv.create(folder, system_site_packages=False, with_pip=True)
    return folder


def test_a_python_without_constraints_gets_a_sentence(environment):
    result = install(environment, CONSTRAINTS="constraints/python-9.9.txt")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "there is no constraints/python-9.9.txt" in result.stderr
    assert "tested: 3.11 3.12 3.13" in result.stderr
    assert "make CONSTRAINTS=none" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_old_python_gets_a_sentence(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo Python 3.9.1; else exit 1; fi\n')
    old.chmod(0o755)
    result = install(tmp_path / "venv", PYTHON=str(old))
    assert result.returncode == 1
    assert "needs Python 3.11 or newer, but" in result.stderr
    assert "is Python 3.9.1; name a newer one" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_failed_installation_is_one_line_with_its_reason(environment):
    result = install(environment, TORCH="torch==99.0")
    assert result.returncode == 1
    assert "torch==99.0: " in result.stderr
    assert "requirement torch==99.0 (from versions: none)" in result.stderr
    assert result.stderr.count("\n") == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tested = (SCRIPT.parents[1] / "constraints" / f"python-{version}.txt").read_text().splitlines()
    assert (environment / "constraints.txt").read_text().splitlines() == [
        line for line in tested if not line.startswith("torch==")
    ]
