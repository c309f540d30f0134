"""The script of `make checkpoint`, in a run of two steps: its files are what tests/test_checkpoints.py asks of the stored."""

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from syvla.training import demo

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("make_tiny_checkpoint", ROOT / "scripts" / "make_tiny_checkpoint.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_the_stored_measurement_is_of_these_settings():
    settings = script.settings_in(script.WORK)
    stored = json.loads(script.RESULT.read_text(encoding="utf-8"))
    steps = settings.train_steps or yaml.safe_load(demo.RECIPE.read_text(encoding="utf-8"))["max_steps"]
    made = (
        stored["demonstrations"],
        stored["episodes"],
        stored["optimizer_steps"],
        stored["threads"],
        stored["thinks"],
    )
    assert made == (settings.demonstrations, settings.episodes, steps, settings.threads, settings.think)
    assert (stored["command"], stored["task"]) == (script.COMMAND, settings.task)


@pytest.mark.slow
def test_recording_training_measuring_and_publishing(tmp_path):
    settings = replace(script.settings_in(tmp_path / "work"), demonstrations=2, episodes=1, train_steps=2)
    script.train_policy(settings)
    weights = settings.checkpoint / "model.safetensors"
    assert weights.read_bytes() != (settings.base / "model.safetensors").read_bytes(), "it trained"
    made = weights.stat().st_mtime_ns
    script.train_policy(settings)
    assert weights.stat().st_mtime_ns == made, "what is there is not made again"

    result = demo.evaluate(settings, settings.checkpoint, "after", 0)
    checkpoint, measured = tmp_path / "tabletop-lift", tmp_path / "measured.json"
    script.publish(settings, result, checkpoint, measured)
    assert {path.name for path in checkpoint.iterdir()} == {*script.FILES, script.SUMS}
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in script.CHECKPOINT.iterdir()}
    for line in (checkpoint / script.SUMS).read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == expected
    facts = json.loads(measured.read_text(encoding="utf-8"))
    assert facts["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (facts["episodes"], len(facts["outcomes"]), facts["optimizer_steps"]) == (1, 1, 2)
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.eval_results[0].metric_value == facts["successes"]
    assert "Trained steps: 2" in card.text
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert str(tmp_path) not in text, path.name
            assert not re.search(r'["\s](/[a-z]+){2,}', text), path.name
