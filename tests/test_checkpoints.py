"""The trained checkpoint that a checkout carries: what its card, its sums and its measurement say is true of its files."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open

import syvla  # noqa: F401  (registers the Auto classes)
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET
from syvla.evaluation.success_rate import SuccessRate

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "tabletop-lift"


@pytest.fixture(scope="module")
def measured():
    return json.loads((ROOT / "benchmarks" / "results" / "tiny_checkpoint.json").read_text(encoding="utf-8"))


def test_files_are_those_of_the_sums():
    sums = dict(line.split()[::-1] for line in (CHECKPOINT / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    assert {path.name for path in CHECKPOINT.iterdir()} == {*sums, "SHA256SUMS"}
    for name, expected in sums.items():
        assert hashlib.sha256((CHECKPOINT / name).read_bytes()).hexdigest() == expected, name


def test_the_weights_were_measured_and_fit_into_a_repository(measured):
    weights = CHECKPOINT / "model.safetensors"
    assert weights.stat().st_size <= 5_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == measured["weights_sha256"]
    with safe_open(weights, "pt") as tensors:
        assert all(tensors.get_slice(name).get_dtype() == "F32" for name in tensors.keys())  # noqa: SIM118  (no mapping)


def test_the_measurement_counts_its_episodes(measured):
    outcomes = measured["outcomes"]
    assert len(outcomes) == measured["episodes"] == 200
    assert sum(outcome["success"] for outcome in outcomes) == measured["successes"]
    assert measured["interval_95"] == pytest.approx(SuccessRate.of(o["success"] for o in outcomes).interval)
    seeds = [outcome["seed"] for outcome in outcomes]
    assert len(set(seeds)) == 200
    assert min(seeds) >= EVALUATION_SEED_OFFSET, "no demonstration has such a seed"


def test_the_card_says_what_was_measured_and_how_it_was_trained(measured):
    card = ModelCard.load(CHECKPOINT / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == measured["successes"] / measured["episodes"]
    assert result.dataset_args["episodes"] == measured["episodes"]
    assert f"Trained steps: {measured['optimizer_steps']}" in card.text
    assert "import syvla\n" in card.text


def test_no_file_names_a_folder_of_the_machine_that_made_it():
    for path in CHECKPOINT.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r'["\s](/[a-z]+){2,}', text), path.name
            assert "auto_map" not in text, "code does not lie beside these weights"


@pytest.mark.smoke
def test_it_loads_as_the_auto_classes_load_it():
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(CHECKPOINT), AutoProcessor.from_pretrained(CHECKPOINT)
    assert type(model).__name__ == "SyVLAModel"
    assert processor.embodiments["tabletop"]["control_hz"] == 10
    assert processor.disagreements(model.config) == []
