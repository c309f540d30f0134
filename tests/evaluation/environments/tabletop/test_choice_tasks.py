"""Calculating and Bagging: the right thing counts and a wrong one does not, and what is unseen is never demonstrated."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from syvla.evaluation import closed_loop
from syvla.evaluation.baselines import BASELINES, ExpertBaseline
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.demonstration_recording import record_demonstrations
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment, make_expert
from syvla.evaluation.environments.demonstration import demonstrate
from syvla.evaluation.environments.tabletop.arithmetic_instructions import PROBLEMS, questions
from syvla.evaluation.environments.tabletop.bagging_catalog import CATALOG, requests
from syvla.evaluation.environments.tabletop.choice_tasks import SEEN_ROW, UNSEEN_ASPECTS, UNSEEN_ROW
from syvla.evaluation.environments.tabletop.tasks import CLEARANCE, HOLD_STEPS
from syvla.processing import RobotDataset

TASKS = ("calculating", "bagging")
SUBSETS = [subset for size in range(4) for subset in combinations(UNSEEN_ASPECTS, size)]


def environment(task, **options):
    return make_environment("tabletop", task, **{"image_size": 1, **options})


def layouts(task, seeds=30, **options):
    env = environment(task, **options)
    for seed in range(seeds):
        env.reset(seed=seed)
        yield env.layout


def instructions(task, unseen):
    """All instructions of a task with the aspects `unseen` out of distribution, enumerated."""
    expression, phrasing = "expression" in unseen, "phrasing" in unseen
    if task == "bagging":
        return {t for item in CATALOG for t in requests(item, unseen_wish=expression, unseen_phrasing=phrasing)}
    asked = [problem for problem in PROBLEMS if problem.unseen == expression]
    return {text for problem in asked for text in questions(problem, unseen=phrasing)}


def settle(env, name, offset=(0.0, 0.0), opening=0.10):
    """Lets a thing drop at the goal and waits; returns the last step."""
    address = env.model.joint(name).qposadr[0]
    goal = env.layout.poses["goal"]
    env.data.qpos[address : address + 7] = (goal[0] + offset[0], goal[1] + offset[1], 0.05, 1, 0, 0, 0)
    hold = env.state.copy()
    hold[[6, 13]] = opening
    for _ in range(12):
        result = env.step(hold)
        if result[2]:
            break
    return result


@pytest.mark.parametrize("split", ["in_domain", "ood"])
@pytest.mark.parametrize("task", TASKS)
def test_experts_solve_both_splits(task, split):
    env = environment(task, split=split)
    expert = make_expert(env)
    seeds = range(EVALUATION_SEED_OFFSET, EVALUATION_SEED_OFFSET + 20)
    assert sum(demonstrate(env, expert, seed=seed).success for seed in seeds) >= 19


@pytest.mark.parametrize("task", TASKS)
def test_experts_leave_the_other_things_where_they_are(task):
    env = environment(task)
    expert = make_expert(env)
    for seed in (*range(4), EVALUATION_SEED_OFFSET + 86):  # the last has a block beside the way to the pad
        assert demonstrate(env, expert, seed=seed).success
        for name, pose in env.layout.poses.items():
            if name.startswith("other"):
                assert env.data.body(name).xpos[:2] == pytest.approx(pose[:2], abs=5e-3)


@pytest.mark.parametrize("task", TASKS)
def test_thoughts_reason_first_and_go_through_the_sub_tasks(task):
    env = environment(task)
    for seed in range(3):
        thoughts = demonstrate(env, make_expert(env), seed=seed).thoughts
        distinct = list(dict.fromkeys(thoughts))
        assert distinct[0] == env.layout.reasoning
        assert [thought.split()[0] for thought in distinct[1:]] == ["reach", "grasp", "lift", "move", "release"]
        assert all(env.layout.target in thought for thought in distinct)
        assert all(f"the {env.layout.arms[0]} arm" in thought for thought in distinct[1:])
        assert all(thought.isascii() for thought in distinct)


def test_thoughts_are_short_for_the_tiny_tokenizer():
    from syvla.processing.tiny_processor import build_tiny_tokenizer

    tokenizer = build_tiny_tokenizer()
    for task in TASKS:
        for layout in layouts(task, seeds=60):
            move = f"move the {layout.target} into the {layout.goal} with the {layout.arms[0]} arm"
            assert max(len(tokenizer(text)["input_ids"]) for text in (layout.reasoning, move)) <= 21


def test_the_right_block_shows_the_answer_and_no_other_does():
    for layout in layouts("calculating"):
        answer = layout.digits["object"]
        assert layout.reasoning.endswith(f" is {answer}; reach the {answer} block")
        assert len(set(layout.digits.values())) == len(layout.digits) in (2, 3)


@pytest.mark.parametrize("unseen", SUBSETS, ids=lambda subset: "+".join(subset) or "none")
@pytest.mark.parametrize("task", TASKS)
def test_exactly_the_chosen_aspects_are_unseen(task, unseen):
    low, high = UNSEEN_ROW if "position" in unseen else SEEN_ROW
    for layout in layouts(task, seeds=12, ood=unseen):
        assert layout.instruction in instructions(task, unseen)
        rows = [pose[0] for name, pose in layout.poses.items() if name != "goal"]
        assert low <= min(rows) <= max(rows) <= high


def test_unseen_positions_lie_beyond_all_seen_ones():
    assert UNSEEN_ROW[0] - SEEN_ROW[1] >= 0.015 - 1e-9


@pytest.mark.parametrize("task", TASKS)
def test_recordings_show_the_in_domain_set_by_default(task):
    assert [layout.instruction for layout in layouts(task)] == [
        layout.instruction for layout in layouts(task, split="in_domain")
    ]
    everything = list(layouts(task, split="ood"))
    assert everything == list(layouts(task, ood=UNSEEN_ASPECTS))
    assert all(layout.instruction in instructions(task, UNSEEN_ASPECTS) for layout in everything)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("aspect", ["expression", "phrasing"])
def test_another_expression_or_phrasing_changes_the_words_alone(task, aspect):
    """So the same seed compares a policy on one scene in seen and unseen words."""
    for seen, unseen in zip(layouts(task), layouts(task, ood=(aspect,)), strict=True):
        assert seen.instruction != unseen.instruction
        assert replace(unseen, instruction="", reasoning="") == replace(seen, instruction="", reasoning="")


@pytest.mark.parametrize("task", TASKS)
def test_things_keep_their_distance_and_either_arm_is_needed(task):
    arms = set()
    for layout in layouts(task, seeds=20):
        places = np.array([pose[:2] for pose in layout.poses.values()])
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(len(places), 1)]
        assert distances.min() >= CLEARANCE
        arms |= set(layout.arms)
    assert arms == {"left", "right"}


@pytest.mark.parametrize("task", TASKS)
def test_only_the_right_thing_at_the_goal_is_success(task):
    env = environment(task)
    reason = {"calculating": "wrong block on the pad", "bagging": "wrong item in the box"}[task]
    for seed in range(4):
        env.reset(seed=seed)
        _, reward, terminated, _, info = settle(env, "object")
        assert (reward, terminated, info["success"], info["failure_reason"]) == (1.0, True, True, None)
        env.reset(seed=seed)
        _, reward, terminated, _, info = settle(env, "other_1")
        assert (reward, terminated, info["success"], info["failure_reason"]) == (0.0, True, False, reason)


@pytest.mark.parametrize("task", TASKS)
def test_beside_the_goal_or_in_a_closed_gripper_is_neither_success_nor_mistake(task):
    env = environment(task)
    for name, options in (
        ("object", {"offset": (0.0, 0.2)}),
        ("object", {"opening": 0.03}),
        ("other_1", {"opening": 0.03}),
    ):
        env.reset(seed=5)
        _, reward, terminated, _, info = settle(env, name, **options)
        assert (reward, terminated, info["success"], info["failure_reason"]) == (0.0, False, False, None)


def test_walls_keep_what_is_in_the_box():
    env = environment("bagging")
    env.reset(seed=0)
    settle(env, "object")
    start = env.model.joint("object").dofadr[0]
    env.data.qvel[start] = 0.5  # meters per second towards a wall
    for _ in range(10):
        env.step(env.state)
    assert abs(env.data.body("object").xpos[0] - env.layout.poses["goal"][0]) < 0.05


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"expert"}))
def test_baselines_without_a_model_fail(name):
    options = {"image_size": 1, "max_steps": 40}
    result = evaluate_closed_loop(name, tasks=TASKS, episodes=3, environment_options=options, progress=False)
    assert [record.failure_reason for record in result.records] == ["time limit"] * 6


def test_a_wrong_choice_ends_the_episode_with_its_reason_in_the_record():
    class WrongChoice(ExpertBaseline):
        def start_episode(self, environment):
            arm = "left" if environment.layout.poses["other_1"][1] >= 0 else "right"
            environment.layout = replace(environment.layout, arms=(arm,))
            super().start_episode(environment)
            body = environment.data.body("other_1")
            self._expert._object_pose = lambda: (body.xpos.copy(), float(np.arctan2(body.xmat[3], body.xmat[0])))

    result = evaluate_closed_loop(
        WrongChoice(), tasks="calculating", episodes=3, environment_options={"image_size": 1}, progress=False
    )
    assert [record.failure_reason for record in result.records] == ["wrong block on the pad"] * 3
    assert all(HOLD_STEPS < record.steps < 80 for record in result.records)


def test_digits_can_be_told_apart_at_48_pixels():
    """A nearest-neighbor reader of the head camera's picture around each block, tested on scenes that it has not seen."""
    env = environment("calculating")
    crops, digits = [], []
    for seed in range(320):
        env.reset(seed=seed)
        picture = env.render_camera("head", 48, 48, supersampling=2).astype(float).mean(axis=-1)
        camera = env.model.camera("head").id
        for name, digit in env.layout.digits.items():
            point = env.data.body(name).xpos + np.array([0, 0, 0.024]) - env.data.cam_xpos[camera]
            x, y, z = env.data.cam_xmat[camera].reshape(3, 3).T @ point
            scale = 24 / np.tan(np.deg2rad(env.model.cam_fovy[camera] / 2))
            column, row = round(23.5 + x / -z * scale), round(23.5 - y / -z * scale)
            crops.append(np.pad(picture, 6, mode="edge")[row + 1 : row + 12, column + 1 : column + 12].ravel())
            digits.append(digit)
    crops, digits, split = np.array(crops), np.array(digits), len(digits) * 4 // 5
    distances = ((crops[split:, None] - crops[None, :split]) ** 2).sum(axis=-1)
    assert np.mean(digits[:split][distances.argmin(axis=1)] == digits[split:]) >= 0.9


def test_recordings_hold_instruction_and_thoughts(tmp_path):
    summary = record_demonstrations(tmp_path, tasks=TASKS, episodes=2, image_size=8, progress=False)
    assert summary["failures"] == 0
    dataset = RobotDataset(tmp_path, embodiment="tabletop", chunk_size=4)
    starts = np.cumsum([0, *dataset.episode_lengths])
    for episode, (task, seed) in enumerate([("calculating", 0), ("bagging", 0), ("calculating", 1), ("bagging", 1)]):
        env = environment(task)
        env.reset(seed=seed)
        assert env.layout.instruction in instructions(task, ())
        items = [dataset[i] for i in range(starts[episode], starts[episode + 1])]
        assert {item["text"] for item in items} == {env.layout.instruction}
        assert items[0]["thought"] == env.layout.reasoning
        assert items[-1]["thought"].startswith(f"release the {env.layout.target}")


def test_command_line_evaluates_the_out_of_distribution_split(tmp_path, capsys):
    arguments = ["--model", "expert", "--env", "tabletop", "--episodes", "2", "--quiet", "--output", str(tmp_path)]
    arguments += [part for task in TASKS for part in ("--task", task)]
    arguments += ["--env-option", "image_size=8", "--env-option", 'split="ood"']
    assert closed_loop.main(arguments) == 0
    assert "calculating: 2/2" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    for record in records:
        assert record["instruction"] in instructions(record["task"], UNSEEN_ASPECTS)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("bagging", {"split": "test"}, "split: expected 'in_domain' or 'ood', got 'test'"),
        ("bagging", {"ood": ["words"]}, r"ood: expected a list out of \['expression', 'phrasing', 'position'\]"),
        ("bagging", {"ood": "position"}, "ood: expected a list"),
        ("bagging", {"split": "in_domain", "ood": ["position"]}, "drop one of them"),
        (
            "lift",
            {"split": "ood"},
            r"task 'lift' has no out-of-distribution split; .*\['calculating', 'bagging', 'place_named', 'place'\]",
        ),
        (
            "place_named",
            {"ood": ["expression"]},
            r"only \['phrasing', 'position'\] can be unseen, got \['expression'\]",
        ),
        ("place", {"ood": ["phrasing"]}, r"ood: of task 'place' only \['position'\] can be unseen, got \['phrasing'\]"),
    ],
)
def test_bad_splits_are_named(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        environment(task, **arguments)


def test_reset_options_are_refused_where_they_have_no_meaning():
    with pytest.raises(ValueError, match=r"options: task 'bagging' takes none, got \['color'\]"):
        environment("bagging").reset(seed=0, options={"color": "red"})
