"""What the tests of the simulators' back-ends share."""

import os
from pathlib import Path

import numpy as np
import pytest

from syvla.evaluation.environments import ENVIRONMENTS, make_environment, make_expert

ROOT = Path(__file__).resolve().parents[2]


def libero_assets():
    """Folder of LIBERO's assets on this machine, or a skip that says where they are looked for."""
    beside = ROOT.parent / "shared" / "libero_assets"
    folder = Path(os.environ.get("LIBERO_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip(f"no LIBERO assets: set LIBERO_ASSETS or put them into {beside}")
    return folder


def make_or_skip(name, task, **options):
    """The environment, or a skip that says what is not installed."""
    if name == "libero":
        options.setdefault("assets", libero_assets())
    if ENVIRONMENTS[name].graphics:  # tests that are not about pictures need not wait for shadows
        options.setdefault("look", "fast")
    try:
        return make_environment(name, task, **options)
    except ImportError as error:
        pytest.skip(str(error))


def check_a_reset_forgets(env, seed, steps=6, histories=2):
    """Whatever was done before a reset, the episode after it is the same to the bit, acted in the same way.

    The histories end in the extremes of every action, in other episodes, and directly after a reset.
    """
    low, high = env.action_space.low, env.action_space.high
    low, high = np.where(np.isfinite(low), low, -0.1), np.where(np.isfinite(high), high, 0.1)

    def episode():
        observation, info = env.reset(seed=seed)
        trace = [observation["state"], info["instruction"]]
        for step in range(steps):
            action = (low + high) / 2 + 0.3 * np.sin(step + np.arange(len(low))) * (high - low) / 2
            observation, reward, terminated, truncated, info = env.step(action.astype(np.float32))
            trace += [observation["state"], np.array([reward, terminated, truncated, info["success"]])]
        simulation = env.unwrapped.data
        return [*trace, simulation.qpos.copy(), simulation.qvel.copy(), simulation.ctrl.copy()]

    first = episode()
    rng = np.random.default_rng(seed)
    for history in range(histories):
        env.reset(seed=seed + 1 + history)
        extremes = np.where(rng.random(len(low)) < 0.5, low, high)
        for action in (extremes, low + high - extremes)[history % 2 :]:
            for _ in range(int(rng.integers(3, 15))):
                env.step(action.astype(np.float32))
        if history % 2:
            env.reset(seed=seed + 7)
        for before, after in zip(first, episode(), strict=True):
            assert np.array_equal(before, after), f"history {history}"


def run_expert(env, seed, expert=None):
    """One episode of the scripted expert: its last info, its thoughts without repetitions, and the steps."""
    env.reset(seed=seed)
    expert = expert or make_expert(env)
    expert.reset()
    thoughts, steps, done = [], 0, False
    while not done:
        action, thought = expert.act()
        if thoughts[-1:] != [thought]:
            thoughts.append(thought)
        _, _, terminated, truncated, info = env.step(action)
        steps, done = steps + 1, terminated or truncated
    return info, thoughts, steps


def random_policy_succeeds(env, seed):
    """Whether actions at random solve the episode within its limit."""
    env.reset(seed=seed)
    rng, done = np.random.default_rng(seed), False
    while not done:
        action = rng.uniform(env.action_space.low, env.action_space.high)
        _, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    return info["success"]
