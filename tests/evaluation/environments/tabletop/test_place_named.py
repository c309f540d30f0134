"""The named object counts, nothing but the name tells it apart, and the words of each split are its own."""

import numpy as np
import pytest

from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment, make_expert
from syvla.evaluation.environments.demonstration import demonstrate
from syvla.evaluation.environments.tabletop.choice_tasks import SEEN_NAMINGS, SEEN_ROW, UNSEEN_NAMINGS, UNSEEN_ROW
from syvla.evaluation.environments.tabletop.tasks import HOLD_STEPS


def environment(**options):
    return make_environment("tabletop", "place_named", **{"image_size": 1, **options})


def layouts(seeds, **options):
    env = environment(**options)
    for seed in range(seeds):
        env.reset(seed=seed)
        yield env.layout


@pytest.mark.parametrize("options", [{}, {"split": "ood"}, {"shapes": ("cube", "cylinder")}], ids=str)
def test_the_expert_puts_the_named_object_on_the_pad(options):
    env = environment(**options)
    seeds = range(EVALUATION_SEED_OFFSET, EVALUATION_SEED_OFFSET + 12)
    for seed in seeds:
        episode = demonstrate(env, make_expert(env), seed=seed)
        assert episode.success, seed
        assert episode.thoughts[0] == f"reach the {env.layout.target}" == env.layout.reasoning
        distinct = list(dict.fromkeys(thought.split()[0] for thought in episode.thoughts))
        assert distinct == ["reach", "grasp", "lift", "move", "release"]
        assert all(env.layout.target in thought for thought in episode.thoughts)
        assert env.data.body("other_1").xpos[:2] == pytest.approx(env.layout.poses["other_1"][:2], abs=5e-3)


def test_neither_place_nor_color_tells_the_named_object_apart():
    found = list(layouts(300))
    for layout in found:
        colors = [layout.colors[name] for name in ("object", "other_1", "goal")]
        assert len(set(colors)) == 3
        assert layout.target == f"{colors[0]} cube"
        assert layout.target in layout.instruction
        assert colors[1] not in layout.instruction
    for coordinate in (0, 1, 2):
        values = {name: [layout.poses[name][coordinate] for layout in found] for name in ("object", "other_1")}
        named_is_larger = np.mean(np.array(values["object"]) > np.array(values["other_1"]))
        assert abs(named_is_larger - 0.5) < 4 * 0.5 / 300**0.5


def test_words_and_places_of_the_splits_do_not_meet():
    for unseen in ((), ("phrasing",), ("position",), ("phrasing", "position")):
        low, high = UNSEEN_ROW if "position" in unseen else SEEN_ROW
        namings = UNSEEN_NAMINGS if "phrasing" in unseen else SEEN_NAMINGS
        for layout in layouts(12, ood=unseen):
            assert layout.instruction in [naming.format(layout.target) for naming in namings]
            assert all(low <= layout.poses[name][0] <= high for name in ("object", "other_1"))
    assert not set(SEEN_NAMINGS) & set(UNSEEN_NAMINGS)
    assert list(layouts(12, split="ood")) == list(layouts(12, ood=("phrasing", "position")))


@pytest.mark.parametrize(
    ("name", "opening", "ended", "reason"),
    [
        ("object", 0.10, True, None),
        ("other_1", 0.10, True, "wrong object on the pad"),
        ("object", 0.055, False, None),  # still held: narrower than a cube and room to let go
        ("other_1", 0.055, False, None),
    ],
)
def test_only_an_object_that_was_let_go_counts(name, opening, ended, reason):
    env = environment()
    env.reset(seed=3)
    address = env.model.joint(name).qposadr[0]
    env.data.qpos[address : address + 7] = (*env.layout.poses["goal"][:2], 0.03, 1, 0, 0, 0)
    hold = env.state.copy()
    hold[[6, 13]] = opening
    for _ in range(8 + HOLD_STEPS):
        _, reward, terminated, _, info = env.step(hold)
        if terminated:
            break
    success = ended and reason is None
    assert (reward, terminated, info["success"], info["failure_reason"]) == (float(success), ended, success, reason)
