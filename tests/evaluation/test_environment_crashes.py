"""A crash of the environment is an error, not a failure of the policy: retried once afresh, then reported."""

import json
import time

import pytest
import reach_environment
from reach_environment import ReachEnvironment, Walker

from syvla.evaluation import closed_loop
from syvla.evaluation.closed_loop import evaluate_closed_loop, evaluation_seeds
from syvla.evaluation.environment_workers import WorkerFault, WorkerSlots
from syvla.evaluation.episode_slot import SlotSettings

reach_environment.register()
SEEDS = evaluation_seeds(0, 4)


def evaluate(policy="walker", workers=1, **crashes):
    options = {"episodes": 4, "batch_size": 4, "workers": workers, "environment_options": crashes, "progress": False}
    return evaluate_closed_loop(Walker(noise=0.0) if policy == "walker" else policy, "reach", "near", **options)


@pytest.mark.parametrize("policy", ["walker", "expert"])
@pytest.mark.parametrize("where", ["reset", "step"])
def test_a_crash_is_an_error_and_leaves_the_rate(where, policy):
    made = ReachEnvironment.made
    result = evaluate(policy, crash_at=where, crash_seeds=SEEDS[1:2])
    assert (result.total.successes, result.total.episodes) == (3, 3)
    assert [record.outcome for record in result.records] == ["success", "error", "success", "success"]
    error = result.records[1]
    assert error.error == f"{where}: RuntimeError: the simulator broke in {where}"
    assert (error.attempts, error.failure_reason) == (2, None)
    assert result.to_dict()["errors"] == [{"task": "near", "seed": SEEDS[1], "error": error.error}]
    slots = 4 if policy == "walker" else 1
    assert ReachEnvironment.made - made >= 1 + slots + 1, "the retry had a fresh environment"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_in_rendering_for_policy_or_video_is_one_too(tmp_path, workers):
    for where in ("look", "render"):
        crashes = {"crash_at": where, "crash_seeds": SEEDS[:1]}
        result = evaluate_closed_loop(
            Walker(0.0), "reach", episodes=2, tasks="near", workers=workers, environment_options=crashes,
            output=tmp_path / where, video_episodes=1, progress=False,
        )  # fmt: skip
        assert [record.outcome for record in result.records] == ["error", "success"]
        assert result.records[0].error.startswith("render: RuntimeError")


@pytest.mark.parametrize("policy", ["walker", "expert"])
def test_a_crash_that_does_not_happen_again_costs_nothing_but_the_retry(tmp_path, policy):
    result = evaluate(policy, crash_at="step", crash_seeds=SEEDS[:2], crash_times=1, crash_folder=str(tmp_path))
    assert result.total.rate == 1.0
    assert result.total.episodes == 4
    assert [record.attempts for record in result.records] == [2, 2, 1, 1]
    assert result.to_dict()["retried"] == 2
    whole = evaluate(policy)
    assert [record.steps for record in whole.records] == [record.steps for record in result.records]
    assert [record.thoughts for record in whole.records] == [record.thoughts for record in result.records]


@pytest.mark.parametrize("policy", ["walker", "expert"])
def test_a_died_process_is_an_error_of_its_episode_alone(policy):
    """Four slots in two processes: the episodes that shared the dead one are run again, as first attempts."""
    result = evaluate(policy, workers=2, crash_at="step exit", crash_seeds=SEEDS[1:2])
    assert [record.outcome for record in result.records] == ["success", "error", "success", "success"]
    assert result.records[1].error == "worker process ended with exit code 7"
    assert [record.attempts for record in result.records] == [1, 2, 1, 1]


def test_a_process_that_dies_once_is_replaced(tmp_path):
    result = evaluate(
        workers=2, crash_at="step exit", crash_seeds=SEEDS[1:2], crash_times=1, crash_folder=str(tmp_path)
    )
    assert result.total.episodes == result.total.successes == 4
    assert [record.attempts for record in result.records] == [1, 2, 1, 1]


def test_an_environment_that_hangs_is_stopped():
    settings = SlotSettings("reach", {"crash_at": "step hang", "crash_seeds": SEEDS[:1]}, "f")
    slots = WorkerSlots(settings, 2, 2, "expert")
    try:
        slots.exchange(dict.fromkeys((0, 1), ("play", "near", SEEDS[1], False, 1)))  # both processes have started
        started = time.monotonic()
        slots.timeout = 6.0  # for the other slot, on a busy machine
        replies = slots.exchange({0: ("play", "near", SEEDS[0], False, 1), 1: ("play", "near", SEEDS[1], False, 1)})
    finally:
        slots.close()
    assert time.monotonic() - started < 50, "the step hangs for 60 s"
    assert "stopped after 6 s without an answer" in replies[0].crash
    assert replies[1].record.success


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_set_the_exit_status_and_are_run_again_later(tmp_path, capsys, workers):
    arguments = ["--model", "expert", "--env", "reach", "--task", "near", "--episodes", "3", "--quiet"]
    arguments += ["--output", str(tmp_path), "--workers", str(workers), "--env-option", f"crash_seeds=[{SEEDS[0]}]"]
    for option in ("crash_at=reset", "crash_times=2", f"crash_folder={tmp_path}"):
        arguments += ["--env-option", option]
    assert closed_loop.main(arguments) == 3
    written = capsys.readouterr()
    assert "near: 2/2 = 100.0%" in written.out
    assert "reach: physics: none, not comparable" in written.out
    assert f"error: near, seed {SEEDS[0]}, 2 attempts: reset: RuntimeError" in written.err
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["outcome"] for line in lines) == ["error", "success", "success"]

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["run"]["environment"] == {"physics": "none, not comparable"}
    assert summary["errors"][0]["seed"] == SEEDS[0]

    assert closed_loop.main(arguments) == 0
    assert "near: 3/3 = 100.0%" in capsys.readouterr().out
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 4, "the two others were not run again"


def test_other_faults_of_a_worker_end_the_evaluation():
    """Holding still means nothing where states are not actions: the caller's mistake, not the environment's."""
    with pytest.raises(ValueError, match="needs actions that are target states"):
        evaluate("still")
    with pytest.raises(WorkerFault, match=r"ValueError.*needs actions that are target states"):
        evaluate("still", workers=2)


def test_a_baseline_of_ones_own_stays_in_this_process():
    class Own:
        name = "own"

        def identity(self):
            return {"policy": "own"}

        def start_episode(self, environment):
            self.environment = environment

        def act(self, environment, observation, seed):
            return environment.goal - environment.position, ""

    assert evaluate(Own()).total.rate == 1.0
    with pytest.raises(ValueError, match="'own' is none of"):
        evaluate(Own(), workers=2)
