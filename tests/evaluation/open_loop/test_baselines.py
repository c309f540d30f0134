"""Baselines against plain loops."""

import numpy as np
import pytest

from syvla.evaluation.open_loop.baselines import (
    hold_position,
    image_features,
    mean_action,
    nearest_neighbor,
    shared_dimensions,
    state_features,
    with_images,
)
from syvla.evaluation.open_loop.moments import Moments


def test_moments_are_every_nth_frame_of_each_episode_with_its_chunk(open_arm):
    dataset = open_arm([1, 3])  # 5 and 6 frames
    moments = Moments.of(dataset, stride=2)
    assert moments.episodes.tolist() == [1, 1, 1, 3, 3, 3]
    assert moments.frames.tolist() == [0, 2, 4, 0, 2, 4]
    assert moments.indices.tolist() == [0, 2, 4, 5, 7, 9]
    assert moments.real.sum(1).tolist() == [4, 3, 1, 4, 4, 2]
    for row, index in enumerate(moments.indices):
        item = dataset[index]
        np.testing.assert_array_equal(moments.actions[row], item["actions"])
        np.testing.assert_array_equal(moments.states[row], item["state"])


def test_fewer_steps_and_fewer_moments(open_arm):
    dataset = open_arm([1, 3])
    assert Moments.of(dataset, steps=3).actions.shape == (11, 3, 2)
    assert Moments.of(dataset, most=3).indices.tolist() == [0, 5, 10]
    with pytest.raises(ValueError, match="steps: expected 1 to 4"):
        Moments.of(dataset, steps=5)
    with pytest.raises(ValueError, match="stride"):
        Moments.of(dataset, stride=0)


def test_dimensions_are_shared_by_name_or_by_what_actions_are_relative_to():
    entry = {"action_dim": 3, "state_names": ["x", "y", "grip"], "action_names": ["grip", "x", "speed"]}
    assert shared_dimensions(entry, None, None) == [2, 0, -1]
    assert shared_dimensions({**entry, "delta_actions": [-1, 1, -1]}, None, None) == [2, 1, -1]
    assert shared_dimensions({"action_dim": 2}, ["a", "b"], ["b", "c"]) == [1, -1]
    assert shared_dimensions({"action_dim": 2}, None, None) == [-1, -1], "without names nothing is known to be shared"
    twice = {"action_dim": 1, "state_names": ["x", "x"], "action_names": ["x"]}
    assert shared_dimensions(twice, None, None) == [-1]


def test_holding_is_the_state_in_the_shared_dimensions(open_arm):
    moments = Moments.of(open_arm([1]), stride=2)
    held = hold_position(moments, [2, -1])
    assert held.dimensions.tolist() == [True, False]
    for row in range(3):
        assert held.actions[row, :, 0].tolist() == [moments.states[row, 2]] * 4
    assert hold_position(moments, [-1, -1]) is None


def test_the_mean_action_is_the_training_episodes(open_arm):
    training = open_arm([0, 2])
    chunks = mean_action(Moments.of(open_arm([1])), training.actions).actions
    np.testing.assert_allclose(chunks, np.broadcast_to(training.actions.mean(0), chunks.shape), rtol=1e-5)


def test_the_nearest_neighbor_by_state_has_the_same_instruction(open_arm):
    held, training = open_arm([2, 4]), open_arm([0, 1, 3])
    moments = Moments.of(held)
    spread, mean = training.states.std(0), training.states.mean(0)
    found = nearest_neighbor(
        moments,
        state_features(moments.states, training.states),
        training,
        np.arange(len(training)),
        state_features(training.states, training.states),
        held.task_indices[moments.indices],
    )
    for row, index in enumerate(moments.indices):
        text, best = held.tasks[held.task_indices[index]], None
        for other in range(len(training)):
            if training.tasks[training.task_indices[other]] == text:
                distance = (
                    ((moments.states[row] - mean) / spread - (training.states[other] - mean) / spread) ** 2
                ).sum()
                if best is None or distance < best[0]:
                    best = (distance, other)
        np.testing.assert_array_equal(found.actions[row], training[best[1]]["actions"])


def test_an_unseen_instruction_takes_the_nearest_of_all(open_arm):
    held, training = open_arm([4]), open_arm([0, 1])  # "pull" is in neither
    moments = Moments.of(held, most=2)
    arguments = (np.arange(len(training)), state_features(training.states, training.states))
    queries = state_features(moments.states, training.states)
    found = nearest_neighbor(moments, queries, training, *arguments, held.task_indices[moments.indices])
    assert found.actions.shape == (2, 4, 2)


def test_images_find_the_frame_that_they_are_of(open_arm):
    dataset = open_arm()
    images = image_features(dataset, np.array([3, 11]), progress=False)
    first = dataset.read_images(3)["center"].reshape(8, 2, 8, 2, 3).mean((1, 3)).ravel() / 255
    np.testing.assert_allclose(images[0], first, atol=1 / 255)
    every = image_features(dataset, np.arange(len(dataset)), progress=False)
    same = np.zeros((len(dataset), 3), np.float32)  # states that tell nothing
    keys = with_images(same, every, every)
    query = with_images(same[:1], images[1:], every)
    assert int(((keys - query) ** 2).sum(1).argmin()) == 11


def test_a_constant_state_dimension_is_no_part_of_the_distance():
    states = np.stack([np.arange(5.0), np.full(5, 7.0)], axis=1).astype(np.float32)
    far = np.array([[1.0, 1e6]], np.float32)
    assert state_features(far, states).shape == (1, 1)
