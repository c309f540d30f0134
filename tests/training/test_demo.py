"""The demo runs end to end and reports what it did; it never touches a folder that it did not make."""

import json
import shlex
import subprocess
import sys

import pytest

from benchmarks.demo_seeds import outcome_of
from syvla.evaluation.closed_loop import SEEDS_PER_RUN
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET
from syvla.training import demo
from syvla.training.demo import DemoSettings, loading_code, prepare_output, training_command


def test_a_folder_of_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="was not made by the demo"):
        prepare_output(tmp_path)
    assert demo.main(["--quick", "--output", str(tmp_path)]) == 1
    assert "name another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_its_own_folder_is_made_anew(tmp_path):
    output = tmp_path / "demo"
    prepare_output(output)
    (output / "report.json").write_text("{}")
    prepare_output(output)
    assert [path.name for path in output.iterdir()] == [demo.MARKER]


def test_the_training_command_is_the_script_that_users_run(tmp_path):
    command = training_command(DemoSettings(output=tmp_path, train_steps=7))
    script = command.index(next(part for part in command if part.endswith("finetune.py")))
    options = dict(zip(command[script + 1 :: 2], command[script + 2 :: 2], strict=True))
    assert options["--max_steps"] == "7"
    assert json.loads(options["--robot_datasets"])["path"] == str(tmp_path / "dataset")
    assert int(command[command.index("--num_cpu_threads_per_process") + 1]) >= 1
    assert shlex.split(shlex.join(command)) == command
    assert "--max_steps" not in training_command(DemoSettings(output=tmp_path))
    alone = training_command(DemoSettings(output=tmp_path, threads=1))
    assert alone[alone.index("--num_cpu_threads_per_process") + 1] == "1"


def test_a_seed_changes_demonstrations_and_weights(tmp_path):
    """Two seeds share no start of a demonstration, and a seed gives the same every time."""
    starts, weights = {}, {}
    for name, seed in (("a", 3), ("b", 4), ("again", 3)):
        settings = DemoSettings(output=tmp_path / name, demonstrations=2, seed=seed)
        demo.record(settings)
        recording = json.loads((settings.dataset / "recording.json").read_text())
        starts[name] = [attempt["seed"] for attempt in recording["attempts"]]
        demo.build_base(settings)
        weights[name] = (settings.base / "model.safetensors").read_bytes()
    assert starts["a"] == starts["again"] == [30_000, 30_001]
    assert not set(starts["a"]) & set(starts["b"])
    assert weights["a"] == weights["again"] != weights["b"]


@pytest.mark.slow
def test_quick_demo_end_to_end(tmp_path):
    """Everything but the learning: recording, training in a process of its own, evaluation, report, page, loading."""
    output = tmp_path / "demo"
    arguments = ["--quick", "--demonstrations", "4", "--episodes", "2", "--train-steps", "4", "--output", str(output)]
    assert demo.main([*arguments, "--seed", "3"]) == 0
    report = json.loads((output / "report.json").read_text())
    for key in ("success_before", "success_after"):
        assert 0.0 <= report[key] <= 1.0
    assert report["episodes"] == 2
    assert report["demonstrations"]["episodes"] == 4
    assert report["seconds"] >= sum(report["seconds_by_stage"].values()) - 1
    assert report["evaluation_seeds"] == [EVALUATION_SEED_OFFSET + 3 * SEEDS_PER_RUN + k for k in (0, 1)], (
        "the third set"
    )
    assert set(report["processor_seconds_by_stage"]) == set(report["seconds_by_stage"])
    assert report["processor_seconds_by_stage"]["training"] > 1, "the process that trains is counted"
    kept = outcome_of(output)
    assert (kept["seed"], kept["train_steps"], kept["demonstrations"]["episodes"]) == (3, 4, 4)
    assert (kept["chunk_end"], kept["augmentation"]) == ("hold", {})
    for when in ("before", "after"):
        assert [episode["seed"] for episode in kept[when]] == report["evaluation_seeds"]
        assert sum(episode["success"] for episode in kept[when]) == 2 * report[f"success_{when}"]
    page = (output / "index.html").read_text()
    for part in ("Closed-loop success", "Training loss", "Episodes, with thoughts", report["checkpoint"]):
        assert part in page
    evaluated = {}
    for name in ("before", "after"):
        lines = (output / f"evaluation_{name}" / "episodes.jsonl").read_text().splitlines()
        evaluated[name] = sorted(json.loads(line)["seed"] for line in lines)
    assert evaluated["before"] == evaluated["after"], "the same situations before and after"

    card = (output / "checkpoint" / "README.md").read_text()
    assert "left_joint_1" in card
    assert "10 Hz" in card

    script = loading_code(report["checkpoint"]) + "print(processor.embodiments.keys(), model.config.chunk_size)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert "tabletop" in loaded.stdout
