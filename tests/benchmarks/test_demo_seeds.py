"""`benchmarks.demo_seeds`: its statistics, and that it goes on where it was stopped; `test_demo` has what it keeps of a run."""

import math

import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks import demo_seeds
from benchmarks.demo_seeds import load_runs, main, save_runs, summary


def made_up(seed, successes, episodes=10):
    """A run whose first `successes` episodes succeed."""
    outcomes = [{"seed": 100 * seed + k, "success": k < successes, "steps": 5} for k in range(episodes)]
    times = {"seconds_by_stage": {"training": 7.4}, "processor_seconds_by_stage": {"training": 5.2}}
    return {"seed": seed, "threads": 1, "load": [0.1, 0.2], **times, "before": outcomes, "after": outcomes}


def test_the_summary_is_students_over_seeds_and_wilsons_over_episodes():
    found = summary([made_up(0, 6), made_up(1, 8), made_up(2, 10), {**made_up(3, 0), "threads": 2}], 1)["after"]
    assert (found["successes_by_seed"], found["successes"], found["episodes"]) == ([6, 8, 10], 24, 30)
    assert found["mean"] == pytest.approx(0.8)
    half = 4.3027 * 0.2 / math.sqrt(3)  # t(0.975, 2), standard deviation 0.2
    assert found["student95"] == pytest.approx([0.8 - half, 1.0], rel=1e-4), "no rate is above one"
    assert found["wilson95"] == pytest.approx([0.6269, 0.9049], abs=1e-4)  # by Wilson's formula for 24 of 30
    assert summary([made_up(0, 6), made_up(1, 6)], 1)["after"]["student95"] is None, "seeds that came out alike"


def test_a_seed_that_is_there_is_not_run_again(tmp_path, monkeypatch, capsys):
    asked = []

    def run(seed, threads, output, extra=()):
        asked.append((seed, threads))
        if seed == 2:
            raise RuntimeError("the demo of seed 2 ended")
        return made_up(seed, seed)

    monkeypatch.setattr(demo_seeds, "run_demo", run)
    path = tmp_path / "seeds.json"
    save_runs(path, [made_up(1, 4)])
    assert main(["--seeds", "0", "1", "2", "3", "--results", str(path)]) == 1
    printed = capsys.readouterr()
    assert sorted(asked) == [(0, 1), (2, 1), (3, 1)]
    assert "demo_seeds: the demo of seed 2 ended" in printed.err
    assert [run["seed"] for run in load_runs(path)] == [0, 1, 3], "the others are kept"
    assert "1        all" in printed.out
