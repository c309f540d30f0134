"""What a release consists of names things that exist: versions, extras, constraints, system packages, commands."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import syvla

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_one_version_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == syvla.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(syvla.__version__)})\]", changelog, re.MULTILINE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_installs_what_the_project_has(path):
    text = path.read_text()
    for extras in re.findall(r"'\.\[([a-z,]+)\]'", text):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    used = re.findall(r"-c (\S+)", text)
    assert used
    assert all((ROOT / name).is_file() for name in used)
    base = re.search(r"^FROM python:(3\.\d+)-slim$", text, re.MULTILINE)[1]
    assert used[0] == f"constraints/python-{base}.txt"
    assert re.search(r"^USER (?!root)", text, re.MULTILINE), "nothing runs as root"
    command = re.search(r'^CMD \["(\S+?)"', text, re.MULTILINE)[1]
    assert command in PROJECT["scripts"]


def test_images_and_workflow_install_the_same_renderer():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    packages = set(re.search(r"apt-get install --yes (.+)", workflow)[1].split())
    for path in DOCKERFILES:
        installed = re.search(r"--no-install-recommends (.+?) &&", path.read_text())[1].split()
        assert packages <= set(installed)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_forms_are_readable(path):
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    for job in content.get("jobs", {}).values():
        assert job["steps"]
        assert job["timeout-minutes"] <= 120 if "timeout-minutes" in job else "environment" in job
