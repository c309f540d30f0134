"""Words and scenes of the decoupling study: they are the environment's own, and nothing but the words tells the right thing."""

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks.decoupling_study_language import (
    END,
    QUERY,
    START,
    TARGETS,
    TASKS,
    disturbed_prompt,
    exchanged_thought,
    full_thought,
    prompt_ids,
    requests,
    scene_text,
    sequence_ids,
    text_batch,
    vocabulary,
    words,
)
from benchmarks.decoupling_study_scenes import (
    CENTER,
    DIM,
    SCALE,
    STATE_CENTER,
    STATE_SCALE,
    VIEWS,
    Demonstrations,
    Scene,
    cached,
    make_world,
    record,
)
from syvla.evaluation.environments.tabletop.choice_tasks import ASPECTS_OF

COUNTS = dict.fromkeys(TASKS, 2)


@pytest.fixture(scope="module")
def recorded():
    return record(COUNTS, 0, 60, 0.01)


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_the_environments_own_instructions_and_thoughts(task):
    for unseen in [(), *((aspect,) for aspect in ASPECTS_OF[task])]:
        env = make_world(task, max_steps=5, ood=unseen)
        for seed in range(8):
            env.reset(seed=seed)
            scene, layout = Scene(env), env.layout
            said = {request.text: request for request in requests(scene.target, unseen)}
            request = said[layout.instruction]
            end = {"calculating": " block", "bagging": "", "place_named": " cube"}[task]
            assert layout.reasoning == request.thought + end
            place = ("first", "second", "third")[scene.names.index("object")]
            assert full_thought(request, scene.targets) == f"{request.thought} {place}"
            assert set(words(scene_text(scene.targets))) <= set(vocabulary())
            assert set(words(f"{layout.instruction} {layout.reasoning}")) <= set(vocabulary())


def test_a_target_is_asked_for_in_many_ways_and_a_group_has_one_expression():
    for target, (task, name) in enumerate(TARGETS):
        asked = requests(target)
        assert len({request.text for request in asked}) == len(asked) >= 3
        assert all(request.target == target and name in request.thought for request in asked)
        assert all((request.residue >= 0) == (task == "calculating") for request in asked)
        groups = {request.group for request in asked}
        assert len(groups) == {"calculating": len(groups), "bagging": 4, "place_named": 3}[task]
    seven = next(r for r in requests(TARGETS.index(("calculating", "7"))) if r.text == "what is 9 minus 2?")
    assert seven.thought == "9 minus 2 is 7; reach the 7"
    assert seven.residue == 9
    four = TARGETS.index(("calculating", "4"))
    table = [four, seven.target]
    assert scene_text(table) == "4 first, 7 second."
    assert full_thought(seven, table) == "9 minus 2 is 7; reach the 7 second"
    assert exchanged_thought(seven, table, four) == "9 minus 2 is 4; reach the 4 first"
    apple, hammer = requests(TARGETS.index(("bagging", "apple")))[0], TARGETS.index(("bagging", "hammer"))
    assert exchanged_thought(apple, [0, apple.target, hammer], hammer) == "nail: reach the hammer third"
    with pytest.raises(ValueError, match=r"expected one of the things on the table \[10\], got 0"):
        exchanged_thought(apple, [10], 0)


def test_sequences_carry_loss_on_the_thought_alone():
    texts = {number: word for word, number in vocabulary().items()}
    red, blue = (TARGETS.index(("place_named", color)) for color in ("red", "blue"))
    prompt = prompt_ids("put the red cube on the pad", [blue, red])
    assert [texts.get(i, i) for i in prompt] == [
        START,
        *["blue", "first", ",", "red", "second", ".", "put", "the", "red", "cube", "on", "the", "pad"],
        END,
        START,
    ]
    ids, labels = sequence_ids(prompt, "reach the red second", 3)
    assert ids[: len(prompt)] == prompt
    assert ids[-3:] == [QUERY] * 3
    learned = [(texts.get(i, i), label == i) for i, label in zip(ids, labels, strict=True) if label != -100]
    assert learned == [("reach", True), ("the", True), ("red", True), ("second", True), (END, True)]
    silent, none = sequence_ids(prompt, None, 3)
    assert silent == prompt + [QUERY] * 3
    assert set(none) == {-100}
    batch = text_batch([(ids, labels), (silent, none)])
    assert batch.mask.sum(1).tolist() == [len(ids), len(silent)]
    assert batch.ids[1, : len(silent)].tolist() == silent


def test_strange_words_take_the_place_of_the_phrasing_alone():
    rng, known = np.random.default_rng(0), set(vocabulary().values())
    text, things = "put the answer of 3 plus 4 on the pad", [3, 7]
    content = [vocabulary()[word] for word in ("3", "plus", "4")]
    assert disturbed_prompt(text, things, 0.0, rng) == prompt_ids(text, things)
    drawn = [disturbed_prompt(text, things, 0.3, rng) for _ in range(400)]
    scene = [START, *(vocabulary()[word] for word in words(scene_text(things)))]
    for ids in drawn:
        assert ids[: len(scene)] == scene
        assert [i for i in ids[len(scene) :] if i in content] == content
        assert ids[-2:] == [END, START]
    strange = [i for ids in drawn for i in ids if i not in known and i not in (START, END)]
    assert max(strange) < START
    # 7 words of the phrasing are replaced, 10 places get one in between with half the probability
    assert len(strange) / 400 == pytest.approx(7 * 0.3 + 10 * 0.15, rel=0.1)
    put = vocabulary()["put"]
    assert sum(put in ids for ids in drawn) / 400 == pytest.approx(0.4, abs=0.1)


def test_views_say_where_things_lie_and_what_they_are():
    for task in TASKS:
        env = make_world(task, max_steps=5)
        for seed in range(4):
            env.reset(seed=seed)
            scene = Scene(env)
            views, present = scene.views()
            own = scene.names.index("object")
            assert views[own, :3] * SCALE + CENTER == pytest.approx(env.data.body("object").xpos, abs=1e-6)
            assert np.flatnonzero(views[own, 7:]).tolist() == [scene.target] == [scene.targets[own]]
            assert present.tolist() == [True, True, len(scene.names) == 3, True]
            assert views[-1, :2] * SCALE[:2] + CENTER[:2] == pytest.approx(env.layout.poses["goal"][:2], abs=1e-6)
            assert views[-1, 5:7].tolist() == [1.0, float(task == "bagging")]
            assert np.diff([env.layout.poses[name][1] for name in scene.names]).max() < 0, "from left to right"
            assert not views[~present].any()


def test_no_slot_tells_the_right_thing():
    env = make_world("place_named", max_steps=5)
    first = []
    for seed in range(200):
        env.reset(seed=seed)
        scene = Scene(env)
        first.append(scene.names[0] == "object")
    assert np.mean(first) == pytest.approx(0.5, abs=4 * 0.5 / 200**0.5)


def test_joint_targets_bring_both_arms_where_an_action_says():
    env = make_world("calculating", max_steps=5)
    env.reset(seed=0)
    scene = Scene(env)
    action = scene.state() + np.tile([0.2, 0.1, -0.3, 0.4, -0.5], 2).astype(np.float32)
    reached = scene.arms(scene.joint_targets(action))
    assert reached == pytest.approx(action * STATE_SCALE + STATE_CENTER, abs=2e-3)


def test_recordings_hold_whole_episodes_and_chunks_end_held(recorded):
    assert recorded.lengths.sum() == len(recorded.states) == len(recorded.actions) == len(recorded.views)
    assert recorded.views.shape[1] == recorded.present.shape[1] == len(VIEWS)
    assert [TARGETS[target][0] for target in recorded.targets] == [task for task in TASKS for _ in range(2)]
    for episode, (own, other) in enumerate(zip(recorded.targets, recorded.others, strict=True)):
        assert own != other
        assert {own, other} <= set(recorded.things(episode))
        assert len(recorded.things(episode)) in (2, 3)
        assert TARGETS[own][0] == TARGETS[other][0]
    last = recorded.starts[1] + recorded.lengths[1] - 1
    chunk = recorded.chunks(np.array([last - 1]), np.array([1]), 4)[0]
    assert chunk.shape == (4, DIM)
    assert (chunk[0] == recorded.actions[last - 1]).all()
    assert (chunk[1:] == recorded.actions[last]).all()


def test_a_recording_is_made_once_and_read_back(recorded, tmp_path):
    path = tmp_path / "new" / "demonstrations.npz"
    first = cached(path, COUNTS, 0, 60, 0.01)
    time = path.stat().st_mtime_ns
    again = cached(path, COUNTS, 0, 60, 0.01)
    assert path.stat().st_mtime_ns == time
    for name in Demonstrations.__dataclass_fields__:
        assert (getattr(first, name) == getattr(again, name)).all()
        assert (getattr(first, name) == getattr(recorded, name)).all(), "the same seeds, the same recording"
