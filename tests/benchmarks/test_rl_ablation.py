"""`benchmarks.rl_ablation` at a scale at which nothing is learned: every step runs, is not run again, and is reported."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")
pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks import rl_ablation
from benchmarks.rl_ablation_plan import CHECK_RUN, DESIGNS, FIRST_ARMS, LEARNING_RATES, TUNING_RUN, TUNING_SEEDS, Plan
from benchmarks.rl_ablation_report import write_report
from benchmarks.rl_ablation_run import ARMS, build_parser, command_words, rollout_seeds, trainer_options
from benchmarks.rl_robot import CommandCount
from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.serving.recording.reader import read_rollouts
from syvla.training.rl.objective_settings import unread_by

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
    rl_ablation.run_all(plan.runs(), 1)
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
    rl_ablation.run_all(jobs, 1)
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
    assert list(jobs) == [(arm, 5) for arm in FIRST_ARMS]
    words = jobs["gae", 5].arguments
    assert words[words.index("--steps") + 1] == "7"
    assert words[words.index("--arm") + 1] == "gae"


def test_the_design_that_decides_is_as_it_was_announced(tmp_path):
    """5 updates of 16 rollouts and 40 steps, 14 seeds, 200 starts that all share; all arms."""
    with pytest.raises(ValueError, match="--learning-rate: expected the one that --design unseen --tune chose"):
        rl_ablation.make_plan(rl_ablation.build_parser().parse_args(["--design", "unseen"]))
    words = ["--design", "unseen", "--learning-rate", "1e-4", "--output", str(tmp_path)]
    plan = rl_ablation.make_plan(rl_ablation.build_parser().parse_args(words))
    jobs = plan.runs()
    assert list(jobs) == [(arm, seed) for seed in range(14) for arm in ARMS]
    told = build_parser().parse_args(list(jobs["both", 13].arguments))
    assert (told.updates, told.rollouts, told.steps, told.episodes, told.starts) == (5, 16, 40, 200, 0)
    assert (told.task, told.split, told.decoupling, told.think, told.value_fit_max_steps) == ("place", "ood", 1, 0, 200)
    assert [path.name for path in told.dataset] == ["place", "place_unseen"]
    assert [path.name for path in told.all_data] == ["place", "place_unseen", "lift", "bar_lift"]
    recorded = {job.output.name: job.arguments for job in plan.preparation() if job.output.parent.name == "data"}
    episodes = {name: words[words.index("--episodes") + 1] for name, words in recorded.items()}
    assert episodes == {"place": "110", "place_unseen": "10", "lift": "120", "bar_lift": "120"}
    assert "split=ood" in recorded["place_unseen"]
    assert "split=ood" not in recorded["place"]
    tuned = [build_parser().parse_args(list(job.arguments)) for job in plan.tuning().values()]
    assert {(one.seed, one.starts) for one in tuned} == {(seed, TUNING_RUN) for seed in TUNING_SEEDS}
    assert {one.learning_rate for one in tuned} == set(LEARNING_RATES)
    assert not set(TUNING_SEEDS) & set(DESIGNS["unseen"].seeds)
    with pytest.raises(ValueError, match="what a learning rate is chosen by is not reported"):
        rl_ablation.make_plan(rl_ablation.build_parser().parse_args([*words, "--seeds", "100"]))


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "il"])
def test_every_arm_is_a_setting_that_the_trainer_takes(arm, tmp_path):
    """Nothing that it sets is refused as without effect."""
    from syvla.training.ppo import RLDataArguments
    from syvla.training.rl.config import SyVLAPPOConfig
    from syvla.training.run.arguments import ModelArguments
    from syvla.training.run.recipe import parse_recipe

    words = ["--arm", arm, "--seed", "0", "--il", "p", "--value", "v", "--vectors", "r", "--dataset", "a", "b"]
    arguments = build_parser().parse_args([*words, "--output", str(tmp_path), "--value_fit_max_steps", "200"])
    options = command_words(trainer_options(arguments))
    _, data, args = parse_recipe((ModelArguments, RLDataArguments, SyVLAPPOConfig), options)
    assert len(data.robot_datasets) == 2
    assert args.target_kl == 0 or "target_kl" in unread_by(args.objective, args.rollout_advantages)
    table_11 = {"pi_rl": ("flow_sde", "none", "gae"), "simplevla_rl": ("flow_sde", "none", "group")}
    found = (args.ratio_method, args.expert_mode, args.rollout_advantages)
    assert found == table_11.get(arm, ("fpo", args.expert_mode, "gae"))


def test_commands_that_the_robot_cannot_carry_out_are_counted():
    """Of two chunks three steps run each. One target lies beyond its limit, one step is longer than a joint can move."""
    space = SimpleNamespace(low=np.array([-1.0, 0.0]), high=np.array([1.0, 0.1]))
    environment = SimpleNamespace(
        action_names=("left_joint_1", "left_gripper"), action_space=space, max_step_motion=np.array([0.3, 0.05])
    )
    count = CommandCount(environment, 3)
    joint = np.array([[0.0, 0.2, 0.4, 9.0], [0.9, 1.1, 0.6, 0.0]])
    count.add(np.stack([joint, np.full((2, 4), -5.0)], axis=-1))
    assert count.plain() == {"commands": 6, "beyond_position": 1, "beyond_speed": 1}
