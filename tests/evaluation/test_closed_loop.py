"""Closed-loop evaluation: what counts as success, independence of batching, resuming, and the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reach_environment
from reach_environment import ReachEnvironment, Walker

from syvla.evaluation import closed_loop
from syvla.evaluation.closed_loop import SEEDS_PER_RUN, evaluate_closed_loop, evaluation_seeds, main
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET
from syvla.evaluation.episode_records import EpisodeRecord, append_record, read_records
from syvla.serving.contract.action_chunks import ActionChunks

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"image_size": 8}

reach_environment.register()


def evaluate(policy, **arguments):
    return evaluate_closed_loop(policy, "reach", arguments.pop("tasks", "near"), progress=False, **arguments)


def outcomes(result) -> list[dict]:
    """Records without what the clock decides."""
    timed = {"call_seconds", "latency"}
    return [{key: value for key, value in r.to_dict().items() if key not in timed} for r in result.records]


def test_seeds_are_fixed_apart_from_demonstrations_and_from_other_runs():
    assert evaluation_seeds(0, 3) == [EVALUATION_SEED_OFFSET, EVALUATION_SEED_OFFSET + 1, EVALUATION_SEED_OFFSET + 2]
    assert not set(evaluation_seeds(0, SEEDS_PER_RUN)) & set(evaluation_seeds(1, SEEDS_PER_RUN))
    for seed, episodes in ((-1, 1), (0, 0), (0, SEEDS_PER_RUN + 1)):
        with pytest.raises(ValueError, match="expected seed >= 0"):
            evaluation_seeds(seed, episodes)


def test_the_expert_succeeds_and_standing_still_fails():
    options = {"episodes": 4, "environment_options": {**SMALL, "max_steps": 40}, "progress": False}
    expert = evaluate_closed_loop("expert", "tabletop", ["lift", "place"], **options)
    assert expert.total.rate == 1.0
    assert set(expert.by_task) == {"lift", "place"}
    assert all(record.thoughts for record in expert.records)
    for baseline in ("still", "random"):
        failed = evaluate_closed_loop(baseline, **options)
        assert failed.total.successes == 0
        assert {record.failure_reason for record in failed.records} == {"time limit"}
        assert {record.steps for record in failed.records} == {40}


def test_standing_still_is_refused_where_actions_are_moves():
    """14 states and 14 actions, but joints here and end-effector moves there."""
    with pytest.raises(ValueError, match="needs actions that are target states"):
        evaluate_closed_loop("still", episodes=1, environment_options={**SMALL, "control": "ee_delta"}, progress=False)


def test_outcomes_do_not_depend_on_the_batch():
    """Noise strong enough that some episodes fail: the same ones, at the same step, whatever ran beside them."""
    runs = {}
    for batch_size in (1, 3, 8):
        policy = Walker()
        runs[batch_size] = outcomes(evaluate(policy, episodes=8, tasks=["near", "far"], batch_size=batch_size))
        assert max(policy.batches) == batch_size
    assert runs[1] == runs[3] == runs[8]
    assert len({record["steps"] for record in runs[1]}) > 2, "the noise should make episodes differ"
    assert {record["success"] for record in runs[1]} == {True, False}


def test_outcomes_do_not_depend_on_the_number_of_worker_processes(tmp_path):
    runs = {}
    for workers in (1, 2):
        options = {"episodes": 5, "tasks": ["near", "far"], "batch_size": 4, "workers": workers}
        runs[workers] = outcomes(evaluate(Walker(), output=tmp_path / str(workers), video_episodes=1, **options))
        for record in runs[workers]:
            assert bool(record["video"]) == (record["seed"] == EVALUATION_SEED_OFFSET)
            assert record["video"] is None or (tmp_path / str(workers) / record["video"]).is_file()
    assert runs[1] == runs[2]
    assert len({record["steps"] for record in runs[1]}) > 2


@pytest.mark.parametrize("baseline", ["expert", "random"])
def test_baselines_act_in_worker_processes_too(baseline):
    alone = evaluate(baseline, episodes=4, tasks="far")
    assert outcomes(alone) == outcomes(evaluate(baseline, episodes=4, tasks="far", workers=2))
    assert alone.total.rate == (1.0 if baseline == "expert" else 0.0)


def test_pictures_are_rendered_only_when_a_policy_looks():
    """In a back-end that renders on access: never for baselines, else once for each call and camera."""
    ReachEnvironment.renderings = 0
    for baseline in ("expert", "random"):
        evaluate(baseline, episodes=2)
    assert ReachEnvironment.renderings == 0
    result = evaluate(Walker(), episodes=2)
    assert ReachEnvironment.renderings == sum(record.policy_calls for record in result.records) > 0


@pytest.mark.parametrize("replan_steps", [4, 3])
def test_chunks_are_executed_as_far_as_asked(replan_steps):
    class Ruler:
        """Answers steps of 1, 2, 3 and 4 hundredths, and notes where it finds itself."""

        name, chunk_size, seen = "ruler", 4, []

        def identity(self):
            return {}

        def predict(self, observations, instructions, *, seeds):
            self.seen += [float(observation["state"][0]) for observation in observations]
            return ActionChunks(np.array([[[0.01, 0], [0.02, 0], [0.03, 0], [0.04, 0]]] * len(observations), "f"))

    policy = Ruler()
    result = evaluate(
        policy, episodes=1, replan_steps=replan_steps, environment_options={"max_steps": 10}, batch_size=1
    )
    moved = sum((0.01, 0.02, 0.03, 0.04)[:replan_steps])
    np.testing.assert_allclose(policy.seen, moved * np.arange(-(-10 // replan_steps)), atol=1e-6)
    assert result.records[0].policy_calls == len(policy.seen)
    assert result.records[0].steps == 10


def command(output: Path, *arguments: str) -> list[str]:
    """syvla-eval in a process of its own, with the tests' back-end."""
    script = "import sys, reach_environment\nfrom syvla.evaluation import closed_loop\n"
    script += (
        "if __name__ == '__main__':\n    reach_environment.register()\n    sys.exit(closed_loop.main(sys.argv[1:]))"
    )
    fixed = ["--model", "random", "--env", "reach", "--task", "near", "--episodes", "8", "--quiet"]
    slow = ["--env-option", "step_seconds=0.01"]
    return [sys.executable, "-c", script, *fixed, *slow, "--output", str(output), *arguments]


def environment_of_processes() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path, workers):
    """kill -9 after some episodes, with a torn last line: the second run adds the rest and equals an unbroken one."""
    options = {"cwd": tmp_path, "env": environment_of_processes()}
    first = subprocess.Popen(command(tmp_path, "--workers", workers), **options)
    path = tmp_path / "episodes.jsonl"
    deadline = time.monotonic() + 180
    while not (path.is_file() and path.read_text().count("\n") >= 2):
        assert first.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started = children(first.pid)
    assert len(started) >= int(workers) - 1
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = path.read_text().splitlines()
    assert 2 <= len(before) < 8
    path.write_text("\n".join(before) + '\n{"task": "near", "se')

    assert subprocess.run(command(tmp_path, "--workers", workers), **options, check=False).returncode == 0
    lines = path.read_text().splitlines()
    assert lines[: len(before)] == before, "finished episodes stay as they are"
    assert len(lines) == 8 + 1, "each of the others was run once; one line is torn"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["total"]["episodes"] == 8
    resumed = read_records(path, json.loads(before[0])["fingerprint"])
    unbroken = evaluate("random", episodes=8)
    assert {seed: record.steps for (_, seed), record in resumed.items()} == {r.seed: r.steps for r in unbroken.records}
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline, "workers outlive the evaluation"
        time.sleep(0.05)


def test_episodes_on_disk_are_taken_only_under_the_same_settings(tmp_path):
    options = {"episodes": 3, "output": tmp_path}
    first = evaluate(Walker(), **options)
    again = Walker()
    assert outcomes(evaluate(again, **options)) == outcomes(first)
    assert again.batches == [], "all episodes are on disk"
    for changed, further in ((Walker(0.2), {}), (Walker(), {"replan_steps": 3}), (Walker(), {"tasks": "far"})):
        evaluate(changed, **options, **further)
        assert changed.batches, "another setting's episodes are not taken for its own"


def test_an_episode_that_lacks_its_video_is_run_again(tmp_path):
    options = {"episodes": 2, "environment_options": SMALL, "progress": False, "output": tmp_path}
    without = evaluate_closed_loop("expert", **options)
    assert [record.video for record in without.records] == [None, None]
    recorded = evaluate_closed_loop("expert", video_episodes=1, **options)
    assert (tmp_path / recorded.records[0].video).is_file()
    assert recorded.records[1].video is None
    again = evaluate_closed_loop("expert", video_episodes=1, **options)
    assert again.records == recorded.records


def test_recordings_of_the_same_episode_under_other_settings_are_kept_apart(tmp_path):
    runs = [evaluate(Walker(noise), episodes=1, output=tmp_path, video_episodes=1) for noise in (0.0, 0.2)]
    assert len({run.records[0].video for run in runs}) == 2
    assert all((tmp_path / run.records[0].video).is_file() for run in runs)


def test_records_survive_text_that_would_break_lines(tmp_path):
    path = tmp_path / "episodes.jsonl"
    record = EpisodeRecord("lift", 7, True, 12, "lift it", thoughts=[(0, "two\nlines\u2028\u00e9")], fingerprint="f")
    append_record(path, record)
    append_record(path, EpisodeRecord("lift", 8, False, 12, "lift it", fingerprint="other"))
    assert read_records(path, "f") == {("lift", 7): record}


def test_records_say_how_long_the_policy_took(tmp_path):
    class Slow(Walker):
        def predict(self, *arguments, **options):
            time.sleep(0.03 if len(self.batches) % 10 else 0.1)
            return super().predict(*arguments, **options)

    result = evaluate(Slow(), episodes=1, output=tmp_path, environment_options={"max_steps": 80}, tasks="far")
    entry = json.loads((tmp_path / "episodes.jsonl").read_text())
    assert entry["policy_calls"] == len(entry["call_seconds"]) == len(entry["thoughts"])
    assert entry["latency"]["p50"] == pytest.approx(np.median(entry["call_seconds"]), abs=1e-4)
    assert 0.03 <= entry["latency"]["p50"] < entry["latency"]["p95"]
    assert entry["latency"]["p95"] >= 0.05
    assert entry["outcome"] == ("success" if result.records[0].success else "failure")
    assert result.to_dict()["latency"] == entry["latency"]


def test_non_finite_actions_are_a_failure_with_its_reason():
    class Broken(Walker):
        def predict(self, *arguments, **options):
            chunks = super().predict(*arguments, **options)
            chunks.actions[:, 2, 1] = np.nan
            return chunks

    result = evaluate(Broken(), episodes=2)
    assert [record.failure_reason for record in result.records] == ["non-finite action at step 2"] * 2


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 7), r"expected 2 dimensions, which are dx, dy; got 7"),
        ((2, 3, 2), r"expected \(2, at least 4, 2\), got \(2, 3, 2\)"),
        ((1, 4, 2), r"got \(1, 4, 2\)"),
        ((2, 2), r"got \(2, 2\)"),
    ],
)
def test_actions_of_a_wrong_shape_end_the_evaluation(shape, message):
    class Broken(Walker):
        def predict(self, *arguments, **options):
            return ActionChunks(np.zeros(shape, np.float32))

    with pytest.raises(ValueError, match=message):
        evaluate(Broken(), episodes=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replan_steps": 9}, "replan_steps: expected 1 to 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"video_episodes": 1}, "set output"),
        ({"tasks": ["lift", "juggle"]}, r"'lift'.*juggle"),
        ({"env": "moon"}, "moon"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_closed_loop("expert", **arguments)


def test_command_line_writes_results_and_recordings(tmp_path, capsys):
    arguments = ["--model", "expert", "--task", "lift", "--episodes", "2", "--video-episodes", "1", "--quiet"]
    arguments += ["--env-option", "image_size=16", "--output", str(tmp_path)]
    assert closed_loop.main(arguments) == 0
    assert "lift: 2/2 = 100.0%" in capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["total"]["success_rate"] == 1.0
    assert summary["settings"]["environment_options"] == {"image_size": 16}
    assert summary["tasks"]["lift"]["interval"][1] == 1.0
    assert (summary["run"]["policy"], summary["run"]["episodes"], summary["run"]["seed"]) == ("expert", 2, 0)
    assert summary["run"]["versions"]["numpy"] == np.__version__
    first = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])
    assert (tmp_path / first["video"]).is_file()
    assert (tmp_path / first["video"]).with_suffix(".png").is_file()


def test_command_line_fails_with_a_message(tmp_path, capsys):
    for name, value in (("--task", "juggle"), ("--model", "./no/such/folder")):
        arguments = ["--model", "expert", name, value, "--output", str(tmp_path), "--quiet"]
        assert closed_loop.main(arguments) == 1
        assert value in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("noise", "zero"), ("advantage-guidance", "2")])
def test_noise_and_guidance_are_choices_for_checkpoints_alone(capsys, tmp_path, option, value):
    for asked in (["--model", "expert"], ["--server", "ws://127.0.0.1:9"]):
        assert main([*asked, f"--{option}", value, "--output", str(tmp_path)]) == 1
        said = "it has no effect here: it belongs to a checkpoint; start the policy server with"
        expected = f"{option.replace('-', '_')}: {said} --{option}"
        assert expected in capsys.readouterr().err
