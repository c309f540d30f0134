"""The recipe and its freezing, what the arms change, and that phases share no seed."""

import dataclasses
import json
import shutil
import subprocess

import pytest

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks import decoupling_study
from benchmarks.decoupling_study_closed_loop import SPLITS, starts
from benchmarks.decoupling_study_plan import ARMS, PHASES, RECIPE, SMOKE, Recipe, frozen_commit, runs
from benchmarks.decoupling_study_policy import make_model, model_config
from syvla.evaluation.environments.tabletop.choice_tasks import ASPECTS_OF

MAIN = ("weakest", "off", "silent_weakest", "silent_off", "random")


def test_75_runs_whole_seeds_first():
    recipe = Recipe.load(changes={"seeds": 10, "further_seeds": 5})
    planned = runs(recipe)
    assert len(planned) == len(set(planned)) == 75
    assert [seed for _, seed in planned] == sorted(seed for _, seed in planned)
    assert {arm for arm, seed in planned if seed == 9} == set(MAIN)
    assert {arm for arm, seed in planned if seed == 4} == set(ARMS)
    assert len(planned) - len(runs(recipe, ["off"])) == 65


def test_arms_are_fields_of_the_models_configuration():
    recipe = Recipe.load(changes=SMOKE)
    configs = {name: model_config(recipe, arm) for name, arm in ARMS.items()}
    common = configs["weakest"].to_dict()
    differ = {
        name: {key: value for key, value in config.to_dict().items() if value != common[key]}
        for name, config in configs.items()
    }
    assert differ == {
        "weakest": {},
        "off": {"intention_decoupling": False},
        "silent_weakest": {},
        "silent_off": {"intention_decoupling": False},
        "random": {"decoupling_choice": "random"},
        "strongest": {"decoupling_choice": "strongest"},
        "quantile_20": {"decoupling_quantile": 0.2},
        "noise": {"intention_decoupling": False, "query_noise": pytest.approx(10**-0.5)},
        "queries_5": {"num_query_tokens": 5},
        "queries_20": {"num_query_tokens": 20},
    }
    assert [name for name, arm in ARMS.items() if not arm.thoughts] == ["silent_weakest", "silent_off"]
    weights = [make_model(recipe, ARMS[name], 3).state_dict() for name in ("weakest", "noise")]
    assert all(bool((weights[0][key] == value).all()) for key, value in weights[1].items())


def test_phases_share_no_seed():
    recipe = Recipe.load()
    used = {}
    for name, phase in PHASES.items():
        world = {start.seed for split in SPLITS for start in starts(recipe, phase, split)}
        assert len(world) == 2 * recipe.starts
        world |= set(range(phase.demonstrations, phase.demonstrations + 2 * max(recipe.demonstrations.values())))
        world |= set(range(phase.held_out, phase.held_out + 2 * recipe.held_out))
        assert len(world) == 2 * (recipe.starts + max(recipe.demonstrations.values()) + recipe.held_out)
        used[name] = world, set(range(phase.training, phase.training + recipe.seeds))
    assert not used["reported"][0] & used["tuning"][0]
    assert not used["reported"][1] & used["tuning"][1]


def test_out_of_distribution_every_aspect_has_its_turn():
    recipe = Recipe.load(changes={"starts": 60})
    found = starts(recipe, PHASES["tuning"], "ood")
    for task in ("calculating", "bagging", "place_named"):
        own = [start.unseen for start in found if start.task == task]
        assert len(own) == 20
        assert {own.count(aspect) for aspect in ASPECTS_OF[task]} <= {6, 7, 10}
    assert {start.unseen for start in starts(recipe, PHASES["tuning"], "in_domain")} == {""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 1}, r"unknown fields \['speed'\]"),
        ({"status": "done"}, "status: expected one of"),
        ({"train_steps": 0}, "train_steps: expected a whole number of at least 1, got 0"),
        ({"train_steps": 2.5}, "train_steps: expected a whole number of at least 1, got 2.5"),
        ({"demonstrations": {"bagging": 3}}, "demonstrations: expected the tasks"),
        ({"disturbance": -1}, "disturbance: expected a number from 0 to 1, got -1"),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0 and below 10, got 0"),
        ({"word_noise": 0.6}, "word_noise: expected a number from 0 to 0.5, got 0.6"),
        ({"replan_steps": 9, "chunk_size": 8}, "replan_steps: expected at most chunk_size=8, got 9"),
    ],
)
def test_impossible_recipes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.load(changes=changes)


def test_the_digest_follows_what_outcomes_depend_on():
    recipe = Recipe.load()
    assert recipe.digest == Recipe.load(changes={"status": "frozen", "seeds": 2, "further_seeds": 1}).digest
    for item in dataclasses.fields(Recipe):
        if item.type == "int" and item.name not in ("seeds", "further_seeds", "replan_steps"):
            changed = Recipe.load(changes={item.name: getattr(recipe, item.name) + 1})
            assert changed.digest != recipe.digest, item.name


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_reported_runs_need_a_frozen_recipe_as_it_is_committed(tmp_path):
    path = tmp_path / RECIPE.name
    shutil.copy(RECIPE, path)
    code = tmp_path / "decoupling_study_run.py"
    code.write_text("# as committed\n")
    with pytest.raises(RuntimeError, match="its status is 'tuning'"):
        frozen_commit(Recipe.load(path, {"status": "tuning"}), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "frozen"}))
    recipe = Recipe.load(path)
    with pytest.raises(RuntimeError, match="cannot ask git"):
        frozen_commit(recipe, path)
    git(tmp_path, "init", "-q")
    with pytest.raises(RuntimeError, match=r"differ from it:\n\?\? decoupling_study_recipe\.json"):
        frozen_commit(recipe, path)
    git(tmp_path, "add", ".")
    with pytest.raises(RuntimeError, match="differ from it"):
        frozen_commit(recipe, path)
    git(tmp_path, "commit", "-qm", "recipe")
    first = frozen_commit(recipe, path)
    assert first == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "other.txt").write_text("x")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "other")
    assert frozen_commit(recipe, path) == first, "the commit of the recipe, not the newest"
    code.write_text("# changed\n")
    with pytest.raises(RuntimeError, match=r"M decoupling_study_run\.py"):
        frozen_commit(recipe, path)
    git(tmp_path, "checkout", "-q", code.name)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(RuntimeError, match=r"M decoupling_study_recipe\.json"):
        frozen_commit(recipe, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train_steps=5"], "use them with --tune"),
        (["--seeds", "1"], "use them with --tune"),
        (["--smoke", "--set", "train_steps=5"], "has no effect with --smoke"),
        (["--tune", "--set", "train_steps"], "expected FIELD=JSON, got 'train_steps'"),
        (["--smoke", "--reproduce", "best", "0"], "expected an arm out of"),
        (["--smoke", "--reproduce", "off", "0"], "run it first"),
        (["--report"], "there are no outcomes to report"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, tmp_path, capsys):
    places = ["--output", str(tmp_path / "out"), "--results", str(tmp_path)]
    assert decoupling_study.main([*arguments, *places]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
