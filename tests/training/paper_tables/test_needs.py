"""Everything that a table needs is looked for before its first step."""

import json

import pytest

from syvla.evaluation.vlm_benchmarks.synthetic_data import write_benchmarks
from syvla.training.paper_tables.command import main, needs
from syvla.training.paper_tables.full_scale import FullScale
from syvla.training.paper_tables.needs import benchmark_needs, libero_needs, missing_files
from syvla.training.paper_tables.plans import ARMS, PLANS


def test_paths_must_exist_and_hub_ids_are_left_alone(tmp_path):
    here, gone = str(tmp_path), str(tmp_path / "gone")
    values = [here, gone, "org/syvla-3b", json.dumps({"path": gone}), "./org/x", None, "chats/a.jsonl"]
    said = missing_files({"--model-path": values})
    assert [text.split(" does not exist")[0] for text in said] == [
        f"--model-path: {gone}",
        f"--model-path: {gone}",
        "--model-path: ./org/x",
        "--model-path: chats/a.jsonl",
    ]


def test_libero_needs_its_robot_its_packages_and_its_assets(monkeypatch, tmp_path):
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    said = libero_needs(["org/libero", json.dumps({"path": "org/libero", "embodiment": "panda"})])
    assert "expected embodiment 'libero', which the environment asks for, got None" in said[0]
    assert "got 'panda'" in said[1]
    assert "LIBERO's assets" in said[2] or "hf-libero" in said[2]
    good = json.dumps({"path": "org/libero", "embodiment": "libero"})
    assert len(libero_needs([good])) == 1


def test_benchmarks_are_looked_for_where_they_are_said_to_be(tmp_path):
    write_benchmarks(tmp_path, 2, tasks=["mme", "ai2d"])
    said = benchmark_needs(str(tmp_path))
    assert len(said) == 3
    assert all(text.startswith("--data-root: ") and "put the dataset" in text for text in said)
    assert benchmark_needs(None) == []


@pytest.mark.parametrize("number", PLANS)
def test_every_table_names_what_is_missing_before_anything_runs(number, tmp_path, capsys):
    scale = FullScale(tmp_path, model_path=str(tmp_path / "model"), accelerate_config=str(tmp_path / "no.yaml"))
    said = "\n".join(needs(PLANS[number], scale, PLANS[number].arms))
    assert "--accelerate-config" in said
    assert "--multimodal-datasets: chats to mix in" in said
    assert f"--model-path: {tmp_path / 'model'} does not exist" in said
    assert main([number, "--output", str(tmp_path), "--model-path", str(tmp_path / "model")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "full" / "runs").exists()


def test_the_named_baselines_have_no_thoughts():
    for arm in ("all_hidden_states", "l1_regression"):
        assert ARMS[arm].options == {"ignore_thoughts": True}
        assert not ARMS[arm].thinks


def test_episodes_are_simulated_by_several_processes(tmp_path):
    scale = FullScale(tmp_path, workers=5)
    for measures in ("ablation", "tasks", "libero"):
        for job in scale.measure("all", 0, measures).values():
            assert job.arguments[job.arguments.index("--workers") + 1] == "5"
