"""MetaWorld: all of its tasks, experts that succeed where random actions fail, a camera that stands upright."""

import hashlib

import numpy as np
import pytest
from simulators import make_or_skip, random_policy_succeeds, run_expert

pytest.importorskip("metaworld")
from syvla.evaluation.environments.metaworld.tasks import LEROBOT_SENTENCES, TASK_WORDS


@pytest.fixture(scope="module")
def push():
    env = make_or_skip("metaworld", "push-v3", image_size=32)
    yield env
    env.close()


def test_every_task_of_metaworld_has_words_and_an_expert():
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    assert set(TASK_WORDS) == set(metaworld.ALL_V3_ENVIRONMENTS)
    assert len(TASK_WORDS) == 50
    assert set(TASK_WORDS) <= set(ENV_POLICY_MAP)
    assert len({words.instruction for words in TASK_WORDS.values()}) == 50, "no two tasks share a sentence"


def test_it_asks_in_the_words_that_lerobot_has_published_unless_told_otherwise(push):
    """Three of them read in LeRobot's metaworld_config.json; a digest of all fifty, in the order of their names."""
    assert set(LEROBOT_SENTENCES) == set(TASK_WORDS)
    assert push.instruction == push.reset(seed=0)[1]["instruction"] == "Push the puck to a goal"
    assert LEROBOT_SENTENCES["dial-turn-v3"] == "Rotate a dial 180 degrees"
    assert LEROBOT_SENTENCES["soccer-v3"] == "Kick a soccer into the goal"
    lines = "\n".join(LEROBOT_SENTENCES[name] for name in sorted(LEROBOT_SENTENCES))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "0d38db1953fe9223"
    plain = make_or_skip("metaworld", "push-v3", sentences="plain")
    assert plain.instruction == "push the puck to the goal"
    assert plain.description["sentences"] == "plain"
    plain.close()
    with pytest.raises(ValueError, match=r"sentences: expected one of \['lerobot', 'plain'\], got 'poems'"):
        make_or_skip("metaworld", "push-v3", sentences="poems")


@pytest.mark.parametrize("task", ["push-v3", "drawer-open-v3", "pick-place-v3"])
def test_the_expert_succeeds_and_random_actions_fail(task):
    env = make_or_skip("metaworld", task)
    for seed in (0, 1_000_000):
        info, _, steps = run_expert(env, seed)
        assert info["success"]
        assert steps < 200
        assert not random_policy_succeeds(env, seed)
    env.close()


def test_thoughts_are_the_subtasks_in_order(push):
    _, thoughts, _ = run_expert(push, 3)
    assert thoughts == ["reach the puck", "close the gripper on the puck", "push the puck to the goal"]


def test_state_and_actions_follow_the_documented_conventions(push):
    """An action of 1 moves the hand by 1 cm; the gripper closes at 1 and opens at -1."""
    push.reset(seed=0)
    assert np.allclose(push.state[:3], push.data.body("hand").xpos)
    start = push.data.mocap_pos[0].copy()
    push.step(np.array([1.0, 0.0, 0.5, -1.0]))
    assert np.allclose(push.data.mocap_pos[0] - start, [0.01, 0.0, 0.005])
    for gripper, expected in ((-1.0, 0.9), (1.0, 0.5)):
        for _ in range(40):
            push.step(np.array([0.0, 0.0, 0.0, gripper]))
        assert (push.state[3] > expected) == (gripper < 0)


def test_goals_come_from_the_seed_and_not_from_numpys_global_generator(push):
    goals = []
    for global_seed in (0, 1):
        np.random.seed(global_seed)
        push.reset(seed=5)
        goals.append(push.full_state[-3:].copy())
    assert np.array_equal(*goals)
    push.reset(seed=6)
    assert not np.allclose(push.full_state[-3:], goals[0])


def test_the_center_picture_is_upright(push):
    """`corner2` is mounted upside down: its picture's up points down in the world, so it is turned by 180 degrees."""
    push.reset(seed=0)
    camera_up = push.data.camera("corner2").xmat.reshape(3, 3)[:, 1]
    assert camera_up[2] < -0.5
    ours = push.render_camera("center", 48, 64)
    as_mounted = push._ready_renderer().render(push._scratch, "corner2", 48, 64)
    assert np.array_equal(ours, as_mounted[::-1, ::-1])


def test_the_episode_limit_is_metaworlds():
    with pytest.raises(ValueError, match="max_steps: expected at most 500"):
        make_or_skip("metaworld", "push-v3", max_steps=501)
