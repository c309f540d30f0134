"""What the tests of the simulators' back-ends share."""

import os
from pathlib import Path

import numpy as np
import pytest

from syvla.evaluation.environments import make_environment, make_expert

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
    try:
        return make_environment(name, task, **options)
    except ImportError as error:
        pytest.skip(str(error))


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
