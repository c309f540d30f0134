"""`benchmarks.rl_ablation` at a scale at which nothing is learned: every step runs, is not run again, and is reported."""

import json

import pytest

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")
pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks import rl_ablation
from benchmarks.rl_ablation_plan import CHECK_RUN, Plan
from benchmarks.rl_ablation_report import write_report
from benchmarks.rl_ablation_run import ARMS, rollout_seeds
from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.serving.recording.reader import read_rollouts

RUN = {"updates": 1, "rollouts": 2, "steps": 2, "batch": 4, "flow_samples": 1, "episodes": 2, "max_steps": 8}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Three arms, one seed, on a policy that has hardly learned anything; demonstrations of every color for the retrieval."""
    folder = tmp_path_factory.mktemp("ablation")
    base = {"demonstrations": 20, "base_steps": 2, "chats": 40, "rows": 4}
    plan = Plan(
        folder / "out",
        folder / "tables",
        ("il", "similar", "imitation"),
        (0,),
        value_steps=2,
        run={**RUN, "curve_episodes": 0, "logging_steps": 1},
        base=base,
        check=False,
    )
    rl_ablation.prepare(plan)
    rl_ablation.run_all(plan, 1)
    return plan


@pytest.mark.slow
def test_an_arm_trains_on_recorded_rollouts_of_the_policy_that_it_published(plan):
    run = plan.runs()["similar", 0]
    result = run.result["summary"]
    assert result["gradient_steps"] == 2
    assert [u["version"] for u in result["updates"]] == [1]
    assert result["episodes"] == 2
    assert len(result["heldout"]) == 2
    episodes = read_rollouts(run.output / "rollouts")
    assert len(episodes) == 2
    for episode in episodes:
        assert [decision.executed for decision in episode.decisions] == [4, 4]
        assert all(decision.executed_known for decision in episode.decisions)
        assert episode.facts.outcome == 0
        assert episode.facts.ended == "time limit"
    assert len({version for episode in episodes for version in episode.facts.policy_versions}) == 1


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(plan):
    jobs = plan.runs()
    written = {key: (job.output / "result.json").stat().st_mtime_ns for key, job in jobs.items()}
    jobs["il", 0].result_path.unlink()
    rl_ablation.run_all(plan, 1)
    again = {key: (job.output / "result.json").stat().st_mtime_ns for key, job in jobs.items()}
    assert [key for key in jobs if again[key] != written[key]] == [("il", 0)]


@pytest.mark.slow
def test_report(plan, tmp_path):
    path = write_report(plan, tmp_path, "rl_ablation")
    content = json.loads(path.read_text())
    assert list(content["arms"]) == ["il", "similar", "imitation"]
    for row in content["arms"].values():
        assert row["seeds"] == [0]
        assert len(row["success"]) == 1
        assert row["ci95"][0] <= row["mean"] == row["success"][0] <= row["ci95"][1]
    assert content["settings"]["steps"] == 2
    table = path.with_suffix(".md").read_text()
    assert "| 0.71 |" in table
    assert "| 0.86 |" in table
    assert "real robot, theirs" in table
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert str(plan.output) not in path.read_text()


def test_a_policy_that_leaves_no_room_is_refused(tmp_path):
    """Imitation learning outside of 40 to 80% is no start for the arms."""
    plan = Plan(tmp_path / "out", tmp_path / "tables")
    for job in plan.preparation():
        job.result_path.parent.mkdir(parents=True, exist_ok=True)
        result = {"arguments": list(job.arguments), "seconds": 0, "summary": {"success": 0.9}}
        job.result_path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"imitation learning: expected a success rate of 0.4 to 0.8, got 0.90"):
        rl_ablation.prepare(plan)


def test_rollouts_and_evaluation_share_no_start():
    starts = [*range(3), CHECK_RUN]
    measured = {seed for run in starts for seed in evaluation_seeds(run, 60)}
    acted = [start for seed in range(3) for version in range(10) for start in rollout_seeds(seed, version, 20)]
    assert len(acted) == len(set(acted))
    assert not measured & set(acted)


def test_the_command_line_describes_the_plan():
    plan = rl_ablation.make_plan(rl_ablation.build_parser().parse_args(["--seeds", "5", "--steps", "7"]))
    jobs = plan.runs()
    assert list(jobs) == [(arm, 5) for arm in ARMS]
    words = jobs["gae", 5].arguments
    assert words[words.index("--steps") + 1] == "7"
    assert words[words.index("--arm") + 1] == "gae"
