"""The ways to install a simulator agree with each other: the error's command, the scripts, the extras."""

import re
import subprocess
import tomllib

from simulators import ROOT

from syvla.evaluation.environments import ENVIRONMENTS as KNOWN

SCRIPTS = {
    name: (ROOT / "scripts" / name).read_text() for name in ("install_test_peers.sh", "make_simulator_environment.sh")
}
ENVIRONMENTS = {name: backend for name, backend in KNOWN.items() if name != "reach"}  # which other tests register
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def pins(text):
    return dict(re.findall(r"(gym-aloha|hf-libero|robosuite|bddl)==([\d.]+)", text))


def test_versions_without_their_requirements_are_pinned_alike():
    named = pins(ENVIRONMENTS["libero"].install)
    assert set(named) == {"hf-libero", "robosuite", "bddl"}
    for text in SCRIPTS.values():
        assert set(pins(text)) == {*named, "gym-aloha"}
        assert named.items() <= pins(text).items()


def test_install_commands_name_extras_that_exist():
    for name, backend in ENVIRONMENTS.items():
        (extra,) = re.findall(r"syvla\[(\w+)\]", backend.install)
        assert extra in EXTRAS, name


def test_the_script_knows_every_back_end():
    script = ROOT / "scripts" / "make_simulator_environment.sh"
    result = subprocess.run(["bash", script, "habitat"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert all(name in result.stderr for name in ENVIRONMENTS)
    assert set(re.findall(r"^    (\w+)\) extras=", script.read_text(), re.MULTILINE)) == set(ENVIRONMENTS)
