"""The commands of docs/evaluation.md and evaluation/README.md run as they stand there, with fewer and shorter episodes; none is
left out in silence."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # and how often each command is there at least, so that a page cannot be emptied in silence
    "docs/evaluation.md": {"syvla-eval": 7, "syvla-record": 1, "syvla-eval-vlm": 1},
    "evaluation/README.md": {"syvla-eval": 3},
}
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SMALL = ["--env-option", "max_steps=4", "--env-option", "image_size=16"]
SMALLER = {  # appended: the last value of an option counts
    "syvla-record": ["--episodes", "1", "--image-size", "16"],
    "syvla-eval": ["--episodes", "1", "--quiet"],
    "syvla-eval-vlm": [
        "--limit",
        "2",
        "--max-new-tokens",
        "4",
        "--quiet",
        "--tasks",
        "mme",
        "--image-budget",
        "checkpoint",
    ],
}
NOT_RUN = {
    "pip": "installs, or asks the registry",
    "unzip": "unpacks what was not downloaded",
    "lmms-eval": "has a test of its own below, in a process of its own",
    "python": "runs in LeRobot's environment; integrations/lerobot_policy_server/tests",
}


def commands(page: str) -> list[list[str]]:
    """Every command of the page's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with what the commands name: a checkpoint, benchmarks, the examples."""
    import torch

    from syvla.evaluation.environments import make_environment
    from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks
    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.processing import build_tiny_processor

    folder = tmp_path_factory.mktemp("page")
    checkpoint = folder / "outputs" / "demo" / "checkpoint"
    config = SyVLAConfig.tiny()
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.full(14, 0.1)}
    rate = make_environment("tabletop", "lift").control_hz
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics}, control_hz=rate)
    torch.manual_seed(0)
    SyVLAModel(config).save_pretrained(checkpoint)
    processor.save_pretrained(checkpoint)
    (folder / "org").mkdir()
    (folder / "org" / "syvla-3b").symlink_to(checkpoint)
    (folder / "examples").symlink_to(ROOT / "examples")
    write_benchmarks(folder / "data", 28, seed=0)
    return folder


@pytest.fixture(scope="module")
def served(place):
    from syvla.serving import PolicyServer
    from syvla.serving.server.settings import ServerSettings

    checkpoint = str(place / "outputs" / "demo" / "checkpoint")
    server = PolicyServer.from_pretrained(checkpoint, ServerSettings(port=0), device="cpu").start(120)
    yield f"ws://127.0.0.1:{server.port}"
    server.stop()


def small(name: str, arguments: list[str]) -> list[str]:
    if "--merge" in arguments:
        return arguments
    extra = list(SMALLER.get(name, []))
    if name == "syvla-eval" and not any("own_environment" in word for word in arguments):
        extra += SMALL
    return [*arguments, *extra]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(place, served, monkeypatch, capsys, page):
    monkeypatch.chdir(place)
    ran, folder = [], place
    for name, *arguments in commands(page):
        if name == "cd":
            folder = place / arguments[0]
            monkeypatch.chdir(folder)
            continue
        if name in NOT_RUN:
            continue
        assert name in COMMANDS, f"{name}: is no command of this project; run it, or say in NOT_RUN why not"
        if "libero" in arguments:  # needs what `pip` brings; tests/evaluation/environments/libero/test_pro.py
            continue
        if "lmms-eval" in arguments and importlib.util.find_spec("lmms_eval") is None:
            continue
        module, function = COMMANDS[name].split(":")
        arguments = [served if word == "ws://127.0.0.1:8000" else word for word in arguments]
        status = getattr(importlib.import_module(module), function)(small(name, arguments))
        said = capsys.readouterr()
        assert not status, f"{name} {' '.join(arguments)}: {said.err[-2000:]}"
        ran.append(name)
        if folder != place:
            folder = place
            monkeypatch.chdir(place)
    for name, times in PAGES[page].items():
        assert ran.count(name) >= times
    if page == "docs/evaluation.md":
        assert (place / "outputs" / "all" / "report.html").is_file()


@pytest.mark.slow
def test_lmms_evals_command_prints_scores():
    """In this environment; `make check-lmms-eval` runs the script in one with nothing but what the page installs."""
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: scripts/install_lmms_eval.sh")
    script = ROOT / "scripts" / "check_lmms_eval.py"
    result = subprocess.run([sys.executable, script, "lmms-eval"], capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "--tasks docvqa_val: scores printed" in result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_is_known(page):
    known = {*COMMANDS, *NOT_RUN, "cd"}
    assert {words[0] for words in commands(page)} <= known
