"""Closed-loop evaluation: what counts as success, independence of batching, resuming, and the command line."""

import json

import numpy as np
import pytest

from evaluation import closed_loop
from evaluation.closed_loop import SEEDS_PER_RUN, evaluate_closed_loop, evaluation_seeds
from evaluation.environments import EVALUATION_SEED_OFFSET, make_environment, make_expert
from evaluation.episode_records import EpisodeRecord, append_record, read_records
from evaluation.policy import ActionChunks, ExpertPolicy

SMALL = {"image_size": 8}


class ClumsyExpert(ExpertPolicy):
    """The expert with noise on its actions, drawn from each call's seed as a sampling policy draws it."""

    name = "clumsy"

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.batches: list[int] = []

    def identity(self):
        return {"policy": "clumsy", "noise": self.noise}

    def predict(self, observations, instructions, *, seeds, environments):
        self.batches.append(len(observations))
        chunks = super().predict(observations, instructions, seeds=seeds, environments=environments)
        draws = [np.random.default_rng(seed).normal(size=chunks.actions.shape[1:]) for seed in seeds]
        return ActionChunks(chunks.actions + np.float32(self.noise * np.stack(draws)), chunks.thoughts)


class Replay:
    """Plays the expert's actions, recorded in advance, in chunks of 8; asks nothing of the environment."""

    name, chunk_size = "replay", 8

    def __init__(self, seeds):
        environment = make_environment("tabletop", "lift", **SMALL)
        self.tapes, self.cursor, self.asked_at = {}, {}, []
        for seed in seeds:
            environment.reset(seed=seed)
            expert = make_expert(environment)
            expert.reset()
            self.tapes[seed] = []
            for _ in range(40):
                self.tapes[seed].append(expert.act()[0])
                environment.step(self.tapes[seed][-1])

    def identity(self):
        return {"policy": "replay"}

    def start_episode(self, environment, seed):
        self.cursor[environment] = [seed, 0]

    def predict(self, observations, instructions, *, seeds, environments):
        chunks = []
        for environment in environments:
            seed, step = self.cursor[environment]
            self.asked_at.append(step)
            chunks.append((self.tapes[seed] + [self.tapes[seed][-1]] * 80)[step : step + 8])
            self.cursor[environment][1] += self.executed
        return ActionChunks(np.asarray(chunks, np.float32))


def outcome(record: EpisodeRecord) -> tuple:
    return record.task, record.seed, record.success, record.steps, tuple(record.thoughts), record.failure_reason


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
    still = evaluate_closed_loop("still", **options)
    assert still.total.successes == 0
    assert {record.failure_reason for record in still.records} == {"time limit"}
    assert {record.steps for record in still.records} == {40}


def test_outcomes_do_not_depend_on_the_batch():
    """Noise strong enough that some episodes fail: the same ones, at the same step, whatever ran beside them."""
    runs = {}
    for batch_size in (1, 3, 8):
        policy = ClumsyExpert(noise=0.05)
        options = {"episodes": 8, "batch_size": batch_size, "environment_options": SMALL, "progress": False}
        runs[batch_size] = [outcome(record) for record in evaluate_closed_loop(policy, **options).records]
        assert max(policy.batches) == batch_size
    assert runs[1] == runs[3] == runs[8]
    assert len({steps for _, _, _, steps, _, _ in runs[1]}) > 1, "the noise should make episodes differ"


@pytest.mark.parametrize("replan_steps", [8, 3])
def test_chunks_are_executed_as_far_as_asked(replan_steps):
    policy = Replay(evaluation_seeds(0, 3))
    policy.executed = replan_steps
    result = evaluate_closed_loop(
        policy, episodes=3, replan_steps=replan_steps, environment_options=SMALL, progress=False
    )
    assert result.total.rate == 1.0
    assert set(policy.asked_at) <= set(range(0, 80, replan_steps))
    for record in result.records:
        assert record.policy_calls == -(-record.steps // replan_steps)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    """A crash after some episodes, with a torn last line: the second run adds the rest and equals an unbroken one."""

    class Crashing(ClumsyExpert):
        started = 0

        def start_episode(self, environment, seed):
            Crashing.started += 1
            if Crashing.started > 4:
                raise RuntimeError("power cut")
            super().start_episode(environment, seed)

    options = {"episodes": 6, "batch_size": 2, "environment_options": SMALL, "progress": False}
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate_closed_loop(Crashing(0.1), output=tmp_path, **options)
    path = tmp_path / "episodes.jsonl"
    finished = len(path.read_text().splitlines())
    assert 0 < finished < 6
    path.write_text(path.read_text() + '{"task": "lift", "se')
    second = ClumsyExpert(0.1)
    resumed = evaluate_closed_loop(second, output=tmp_path, **options)
    unbroken = evaluate_closed_loop(ClumsyExpert(0.1), **options)
    assert [outcome(record) for record in resumed.records] == [outcome(record) for record in unbroken.records]
    assert len(read_records(path, resumed.records[0].fingerprint)) == 6

    third = ClumsyExpert(0.1)
    evaluate_closed_loop(third, output=tmp_path, **options)
    assert third.batches == [], "all episodes are on disk"
    other = ClumsyExpert(0.2)
    evaluate_closed_loop(other, output=tmp_path, **options)
    assert other.batches, "another policy's episodes are not taken for its own"


def test_an_episode_that_lacks_its_video_is_run_again(tmp_path):
    options = {"episodes": 2, "environment_options": SMALL, "progress": False, "output": tmp_path}
    without = evaluate_closed_loop("expert", **options)
    assert [record.video for record in without.records] == [None, None]
    recorded = evaluate_closed_loop("expert", video_episodes=1, **options)
    assert (tmp_path / recorded.records[0].video).is_file()
    assert recorded.records[1].video is None
    again = evaluate_closed_loop("expert", video_episodes=1, **options)
    assert again.records == recorded.records


def test_records_survive_text_that_would_break_lines(tmp_path):
    path = tmp_path / "episodes.jsonl"
    record = EpisodeRecord("lift", 7, True, 12, "lift it", thoughts=[(0, "two\nlines\u2028\u00e9")], fingerprint="f")
    append_record(path, record)
    append_record(path, EpisodeRecord("lift", 8, False, 12, "lift it", fingerprint="other"))
    assert read_records(path, "f") == {("lift", 7): record}


def test_non_finite_actions_are_a_failure_with_its_reason():
    class Broken(ExpertPolicy):
        def predict(self, observations, instructions, *, seeds, environments):
            chunks = super().predict(observations, instructions, seeds=seeds, environments=environments)
            return ActionChunks(chunks.actions * np.nan)

    result = evaluate_closed_loop(Broken(), episodes=2, environment_options=SMALL, progress=False)
    assert [record.failure_reason for record in result.records] == ["non-finite action at step 0"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replan_steps": 9}, "replan_steps: expected 1 to 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"video_episodes": 1}, "set output"),
        ({"tasks": "juggle"}, "juggle"),
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
    first = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])
    assert (tmp_path / first["video"]).is_file()
    assert (tmp_path / first["video"]).with_suffix(".png").is_file()


def test_command_line_fails_with_a_message(tmp_path, capsys):
    for name, value in (("--task", "juggle"), ("--model", "./no/such/folder")):
        arguments = ["--model", "expert", name, value, "--output", str(tmp_path), "--quiet"]
        assert closed_loop.main(arguments) == 1
        assert value in capsys.readouterr().err
