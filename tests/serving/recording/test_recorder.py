"""Recorded rollouts read back as they were served, whole episodes or none, whatever happens to process and disk."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from syvla.processing import RobotDataset
from syvla.serving.recording.decision import Decision, Rollout
from syvla.serving.recording.reader import read_rollouts
from syvla.serving.recording.recorder import (
    RecordingError,
    RolloutRecorder,
    TooManyEpisodes,
    max_open_episodes,
)
from syvla.training.retrieval.demonstrations import human_frames

CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}
SETTINGS = {"fps": 20.0, "embodiment": "arm"}


def observation(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for camera in ("head", "left_wrist")}
    return images, rng.normal(size=3).astype(np.float32)


def decision(seed: int, **changes) -> Decision:
    images, state = observation(seed)
    chunk = np.random.default_rng(seed + 10_000).normal(size=(5, 2)).astype(np.float32)
    fields = {"instruction": "lift the cube", "seed": seed, "policy_version": "abc", "thought": f"thought {seed}"}
    return Decision(images, state, embodiment="arm", chunk=chunk, **{**fields, **changes})


def seeds(rollout: Rollout) -> list[int]:
    return [decision.seed for decision in rollout.decisions]


def frames_of(root: Path) -> RobotDataset:
    return RobotDataset(root, embodiment="arm", cameras=CAMERAS, chunk_size=1)


def test_a_client_that_sends_observations_per_chunk(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    limited = decision(2, thought=None, frozen_steps=2, query_age=0.25, limited=decision(2).chunk / 2)
    first = recorder.record("robot", decision(1))
    assert first["chunk_id"] == first["episode_id"] + ":0"
    assert recorder.record("robot", limited, executed_before=3)["chunk_id"].endswith(":1")
    recorder.record("robot", decision(3))
    name = recorder.end("robot", executed=4, outcome=1)
    recorder.close()

    (episode,) = read_rollouts(tmp_path / "set")
    assert (episode.facts.episode_id, episode.facts.outcome, episode.facts.decisions) == (name, 1, 3)
    assert (episode.facts.instruction, episode.facts.policy_versions) == ("lift the cube", ("abc",))
    read = episode.decisions
    assert [d.executed for d in read] == [3, 5, 4]
    assert [d.executed_known for d in read] == [True, False, True]
    assert [d.control_step for d in read] == [0, 3, 8]
    own = [[True] * 3 + [False] * 2, [False] * 2 + [True] * 3, [True] * 4 + [False]]
    assert [d.valid.tolist() for d in read] == own, "two of the second chunk are carried over from the first"
    assert [d.thought for d in read] == ["thought 1", None, "thought 3"]
    assert [(d.frozen_steps, d.query_age) for d in read] == [(0, 0), (2, 0.25), (0, 0)]
    assert {(d.instruction, d.embodiment, d.policy_version) for d in read} == {("lift the cube", "arm", "abc")}
    dataset = frames_of(tmp_path / "set")
    served = [decision(1), limited, decision(3)]
    for row, (found, was) in enumerate(zip(read, served, strict=True)):
        assert (found.seed, found.chain) == (was.seed, None)
        np.testing.assert_array_equal(found.chunk, was.chunk)
        np.testing.assert_array_equal(found.state, was.state)
        assert found.images.keys() == {"center", "left_wrist"}
        np.testing.assert_array_equal(found.images["center"], was.images["head"])
        np.testing.assert_array_equal(found.images["left_wrist"], was.images["left_wrist"])
        np.testing.assert_array_equal(dataset[row]["actions"][0], was.commands[0], "as the robot got it")
    np.testing.assert_array_equal(episode.final.state, read[-1].state)


def test_a_flood_of_sessions_leaves_files_for_the_sockets(tmp_path, monkeypatch):
    import resource

    assert 1 <= max_open_episodes() <= max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 8192) // 2
    monkeypatch.setattr("syvla.serving.recording.recorder.max_open_episodes", lambda: 2)
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    recorder.record("one", decision(1))
    recorder.record("two", decision(2))
    with pytest.raises(TooManyEpisodes, match="2 episodes of other sessions are open"):
        recorder.record("three", decision(3))
    recorder.record("one", decision(4))  # goes on
    recorder.end("one")
    recorder.record("three", decision(3))
    recorder.close()
    assert frames_of(tmp_path / "set").num_episodes == 3


def test_a_client_that_sends_every_step_leaves_an_ordinary_demonstration(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    with pytest.raises(ValueError, match="no episode is open"):
        recorder.observe("robot", *observation(0))
    recorder.record("robot", decision(1))
    for seed in (50, 51):
        recorder.observe("robot", *observation(seed))
    recorder.record("robot", decision(2))
    for seed in range(60, 64):
        recorder.observe("robot", *observation(seed))
    with pytest.raises(ValueError, match="all 5 actions of the chunk ran"):
        recorder.observe("robot", *observation(64))
    recorder.end("robot")
    recorder.close()

    (episode,) = read_rollouts(tmp_path / "set")
    assert [d.executed for d in episode.decisions] == [3, 5]
    assert all(d.executed_known for d in episode.decisions)
    np.testing.assert_array_equal(episode.final.images["center"], observation(63)[0]["head"])
    np.testing.assert_array_equal(episode.final.state, observation(63)[1])
    dataset = frames_of(tmp_path / "set")
    np.testing.assert_array_equal(dataset.actions, np.concatenate([decision(1).chunk[:3], decision(2).chunk]))
    np.testing.assert_array_equal(dataset[2]["images"]["center"], observation(51)[0]["head"])
    assert [dataset[index]["thought"] for index in (0, 2, 3)] == ["thought 1", "thought 1", "thought 2"]


def test_sessions_that_run_at_once_become_episodes_of_their_own(tmp_path):
    with_name = RolloutRecorder(tmp_path / "set", assumed_steps=2, **SETTINGS)
    for step in range(3):
        for robot in range(4):
            with_name.record(f"robot {robot}", decision(10 * robot + step), episode_id=f"episode {robot}")
    with_name.record("robot 0", decision(7), episode_id="episode 4")  # ends episode 0
    assert with_name.discard("robot 1") == "episode 1"
    with pytest.raises(ValueError, match="'episode 0' is over"):
        with_name.record("robot 2", decision(8), episode_id="episode 0")
    with_name.close()

    episodes = {episode.facts.episode_id: episode for episode in read_rollouts(tmp_path / "set")}
    assert set(episodes) == {"episode 0", "episode 2", "episode 3", "episode 4"}
    assert episodes["episode 0"].facts.ended == "new episode"
    assert episodes["episode 3"].facts.ended == "server stopped"
    for robot in (0, 2, 3):
        assert seeds(episodes[f"episode {robot}"]) == [10 * robot + step for step in range(3)]
        assert [d.executed for d in episodes[f"episode {robot}"].decisions] == [2, 2, 2]


def test_a_repeated_request_is_recorded_once(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    first = recorder.record("robot", decision(1), request_id="a")
    assert recorder.record("robot", decision(1), request_id="a") == first
    recorder.record("robot", decision(2), request_id="b", executed_before=5)
    with pytest.raises(ValueError, match="executed_steps: expected 0 to 5"):
        recorder.record("robot", decision(3), executed_before=6)
    with pytest.raises(ValueError, match="executed_steps"):
        recorder.end("robot", executed=-1)
    recorder.close()
    assert seeds(read_rollouts(tmp_path / "set")[0]) == [1, 2]


def test_an_outcome_that_is_known_at_the_end_is_kept(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    for seed, outcome in enumerate((1, 0, None)):
        recorder.record("robot", decision(seed))
        for wrong in (2, True, "1"):
            with pytest.raises(ValueError, match="outcome"):
                recorder.end("robot", outcome=wrong)
        recorder.end("robot", outcome=outcome)
    recorder.close()
    assert [episode.facts.outcome for episode in read_rollouts(tmp_path / "set")] == [1, 0, None]
    assert [episode.facts.outcome for episode in read_rollouts(tmp_path / "set", episodes=[2, 0])] == [None, 1]


def test_one_recorder_at_a_time_and_only_into_a_folder_of_its_own(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    with pytest.raises(RuntimeError, match="another process is recording"):
        RolloutRecorder(tmp_path / "set", **SETTINGS)
    recorder.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="choose another folder"):
        RolloutRecorder(tmp_path / "other", **SETTINGS)


def test_frames_that_outrun_the_disk_cost_their_episode_and_nobody_waits(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", max_pending_bytes=3000, **SETTINGS)  # a decision has 4648 bytes
    for seed in (1, 2):
        reply = recorder.record("robot", decision(seed), episode_id="the first")
        assert reply.keys() == {"recording_error"}, "no name of a lost episode"
        assert "episode the first is not recorded: " in reply["recording_error"]
    recorder.end("robot")
    assert "too slow" in str(recorder.error)
    assert recorder.losses == {"disk_full": 0, "disk_error": 0, "disk_slow": 1, "data": 0}
    with pytest.raises(RecordingError, match="the first"):
        recorder.close()
    assert not (tmp_path / "set" / "meta").exists()


def test_an_episode_that_does_not_fit_the_data_set_is_dropped_whole(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    recorder.record("robot", decision(1))
    recorder.end("robot")
    recorder.record("robot", decision(2))
    recorder.record("robot", wrong_size(3))
    recorder.end("robot")
    assert recorder.flush(30)
    assert "observation.images.head" in str(recorder.error)
    recorder.record("robot", decision(4))
    recorder.end("robot")
    assert recorder.flush(30)
    assert recorder.error is None
    assert (recorder.status()["saved"], recorder.status()["lost"]) == (2, 1)
    with pytest.raises(RecordingError):
        recorder.close()
    assert [seeds(episode) for episode in read_rollouts(tmp_path / "set")] == [[1], [4]]


def wrong_size(seed: int) -> Decision:
    images = {camera: image[:8] for camera, image in observation(seed)[0].items()}
    return replace(decision(seed), images=images)


SCRIPT = """
import importlib.util, resource, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("recordings", sys.argv[1])
recordings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recordings)
recorder = recordings.RolloutRecorder(sys.argv[2], **recordings.SETTINGS)


def run(seed, decisions=3):
    for step in range(decisions):
        recorder.record("robot", recordings.decision(100 * seed + step))
    recorder.end("robot")
    assert recorder.flush(60)
"""

ENDLESS = """
seed = 0
while True:
    run(seed)
    print(seed, flush=True)
    seed += 1
"""

FULL_DISK = """
run(0)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), limits[1]))  # as a full disk: no file grows beyond it
run(1, decisions=30)
print(recorder.error, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
run(2)
print(recorder.error, flush=True)
try:
    recorder.close()
except recordings.RecordingError as error:
    print(error, flush=True)
"""


def start(script: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT + script, __file__, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_leaves_every_episode_it_had_sealed(tmp_path):
    root = tmp_path / "set"
    process = start(ENDLESS, str(root))
    for _ in range(4):
        acknowledged = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, process.communicate()[0].split())])
    episodes = read_rollouts(root)
    assert len(episodes) >= acknowledged + 1
    for seed, episode in enumerate(episodes):
        assert seeds(episode) == [100 * seed + step for step in range(3)]
        np.testing.assert_array_equal(episode.decisions[2].chunk, decision(100 * seed + 2).chunk)
        image = episode.decisions[2].images["center"]
        np.testing.assert_array_equal(image, decision(100 * seed + 2).images["head"])
    recorder = RolloutRecorder(root, **SETTINGS)
    recorder.record("robot", decision(9))
    recorder.close()
    assert len(read_rollouts(root)) == len(episodes) + 1
    assert not [path for path in root.rglob(".*") if path.name != ".recording"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 160_000])  # the frames do not fit; they do, but their data file does not
def test_a_full_disk_is_reported_and_costs_only_the_episodes_of_its_time(tmp_path, limit):
    root = tmp_path / "set"
    out, err = start(FULL_DISK, str(root), str(limit)).communicate(timeout=120)
    first, second, closing = out.splitlines()
    assert "OSError" in first, err
    assert second == "None"
    assert "lost 1 episode" in closing
    assert "is not recorded" in err
    assert [seeds(episode)[0] for episode in read_rollouts(root)] == [0, 200]


def command(seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 77).normal(size=2).astype(np.float32)


def test_a_person_takes_over_and_lets_go_again(tmp_path):
    """Two steps of the first chunk, three of a person, four of the second chunk, two of a person to the end."""
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    recorder.record("robot", decision(1))
    recorder.observe("robot", *observation(50))
    for seed in (60, 61, 62):
        recorder.observe("robot", *observation(seed), correction=command(seed))
    recorder.record("robot", decision(2), executed_before=2)
    for seed in (63, 64):
        recorder.observe("robot", *observation(seed), correction=command(seed), executed=4 if seed == 63 else None)
    recorder.end("robot", executed=4, outcome=1)
    recorder.close()

    (episode,) = read_rollouts(tmp_path / "set")
    assert [(d.executed, d.executed_known, d.control_step, d.taken_over) for d in episode.decisions] == [
        (2, True, 0, True),
        (4, True, 5, True),
    ]
    assert [d.valid.sum() for d in episode.decisions] == [2, 4]
    assert episode.facts.corrections == 5
    lengths = [(len(one.commands), one.ends_episode) for one in episode.corrections]
    assert lengths == [(3, False), (2, False), (1, False), (2, True), (1, True)]
    for one, seed in zip(episode.corrections, (60, 61, 62, 63, 64), strict=True):
        np.testing.assert_array_equal(one.commands[0], command(seed))
        np.testing.assert_array_equal(one.state, observation(seed)[1])
        np.testing.assert_array_equal(one.images["center"], observation(seed)[0]["head"])
    item = episode.corrections[1].item(4)
    assert item["action_is_pad"].tolist() == [False, False, True, True]
    np.testing.assert_array_equal(item["actions"], [command(61), command(62), command(62), command(62)])
    np.testing.assert_array_equal(episode.final.state, observation(64)[1])
    dataset = frames_of(tmp_path / "set")
    assert dataset.features["intervention"] == {"dtype": "bool", "shape": [1], "names": None}, "as LeRobot's own DAgger"
    np.testing.assert_array_equal(human_frames(dataset), [0, 0, 1, 1, 1, 0, 1, 1])
    expected = [*decision(1).chunk[:2], *map(command, (60, 61, 62)), decision(2).chunk[0], *map(command, (63, 64))]
    np.testing.assert_array_equal(dataset.actions, expected)


def test_corrections_that_do_not_fit_are_refused_and_cost_nothing(tmp_path):
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    with pytest.raises(ValueError, match="no episode is open; ask for actions first"):
        recorder.observe("robot", *observation(0), correction=command(0))
    recorder.record("robot", decision(1))
    with pytest.raises(ValueError, match=r"action: expected shape \(2,\) as the policy's actions have, got \(3,\)"):
        recorder.observe("robot", *observation(1), correction=np.zeros(3, np.float32), executed=1)
    with pytest.raises(ValueError, match="executed_steps: expected with the first correction"):
        recorder.observe("robot", *observation(1), correction=command(1))
    with pytest.raises(ValueError, match="executed_steps: expected 0 to 5"):
        recorder.observe("robot", *observation(1), correction=command(1), executed=6)
    recorder.observe("robot", *observation(60), correction=command(60), executed=3, request_id="a")
    recorder.observe(
        "robot", *observation(60), correction=command(60), executed=3, request_id="a"
    )  # its answer was lost
    with pytest.raises(ValueError, match="observe_only: a person acts; send the person's command"):
        recorder.observe("robot", *observation(2))
    for wrong in (
        lambda: recorder.record("robot", decision(3), executed_before=4),
        lambda: recorder.end("robot", executed=2),
    ):
        with pytest.raises(ValueError, match="executed_steps: expected 3, as many as ran before the person took over"):
            wrong()
    recorder.end("robot", outcome=0)
    recorder.close()
    (episode,) = read_rollouts(tmp_path / "set")
    assert ([d.executed for d in episode.decisions], len(episode.corrections)) == ([3], 1)


def test_a_recording_from_before_corrections_goes_on_without_them(tmp_path, monkeypatch):
    """The column cannot be added to a dataset that lacks it; its episodes must not be lost for that."""
    import syvla.serving.recording.recorder as module

    monkeypatch.setattr(module, "_known_episodes", lambda root: (set(), False))  # writes as it was written before
    older = RolloutRecorder(tmp_path / "set", **SETTINGS)
    older.record("robot", decision(1))
    older.end("robot")
    older.close()
    monkeypatch.undo()
    recorder = RolloutRecorder(tmp_path / "set", **SETTINGS)
    recorder.record("robot", decision(2))
    with pytest.raises(ValueError, match="intervention: set is older and has no such column; record into a new folder"):
        recorder.observe("robot", *observation(0), correction=command(0), executed=1)
    recorder.observe("robot", *observation(0))
    recorder.close()
    episodes = read_rollouts(tmp_path / "set")
    assert [seeds(episode) for episode in episodes] == [[1], [2]]
    assert [episode.corrections for episode in episodes] == [(), ()]
