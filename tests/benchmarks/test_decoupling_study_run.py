"""The study from end to end at a size at which nothing is learned: every part, resuming, and the same outcomes twice."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="MuJoCo (extra sim) is not installed")

from benchmarks import decoupling_study
from benchmarks.decoupling_study_base import base_path, lookup_sample, prepare_base, pretrain, start_from
from benchmarks.decoupling_study_closed_loop import SPLITS
from benchmarks.decoupling_study_language import PAD, QUERY, TARGETS, vocabulary
from benchmarks.decoupling_study_plan import ARMS, PHASES, SMOKE, Recipe
from benchmarks.decoupling_study_policy import Batches, given_states, make_model, thoughtful_states
from benchmarks.decoupling_study_run import demonstrations, finished, result_path, run_into

TARGETS_BY_WORD = {name: number for number, (_, name) in enumerate(TARGETS)}
QUICK = {**SMOKE, "train_steps": 2, "starts": 6, "held_out": 4, "held_out_frames": 1, "max_steps": 5, "seeds": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Arguments and folder of a study of one arm that has been run."""
    folder = tmp_path_factory.mktemp("study")
    patch = pytest.MonkeyPatch()
    patch.setattr(decoupling_study, "SMOKE", QUICK)
    arguments = ["--smoke", "--arms", "random", "--processes", "1", "--output", str(folder), "--seeds", "1"]
    assert decoupling_study.main(arguments) == 0
    yield arguments, folder / "smoke"
    patch.undo()


@pytest.fixture(scope="module")
def recipe():
    return Recipe.load(changes={**QUICK, "further_seeds": 1})


def test_every_outcome_is_there(place, recipe):
    study = json.loads((place[1] / "decoupling_study_smoke.json").read_text())
    assert study["recipe"]["train_steps"] == recipe.train_steps
    assert study["arms"]["random"]["model"] == {"intention_decoupling": True, "decoupling_choice": "random"}
    (run,) = study["runs"]
    assert (run["arm"], run["seed"], run["phase"], run["recipe"]) == ("random", 0, "tuning", recipe.digest)
    for split in SPLITS:
        assert len(run[split]["outcomes"]) == len(run[split]["steps"]) == len(run[split]["thoughts_right"]) == 6
        assert set(run[split]["outcomes"]) <= set("swt")
        assert all(1 <= steps <= recipe.max_steps for steps in run[split]["steps"])
    found = run["mechanism"]
    assert sum(found["masks"]["share"]) == pytest.approx(1, abs=1e-3), "one of ten states is masked"
    assert sum(found["attention"]) == pytest.approx(1, abs=1e-3)
    assert set(found["exchanged"]) == {"error_right", "error_wrong", "variance_right", "variance_wrong", "moved"}
    assert set(found["probes"]) == {"place", "name", "number"}
    assert len(found["probes"]["place"]["each"]) == 10
    assert 0 <= found["masks"]["agree_training"] <= 1
    assert set(run["cpu_seconds"]) == {"demonstrations", "base", "training", "evaluation", "mechanism"}
    assert {p.name for p in place[1].glob("*.png")} == {
        "decoupling_study_smoke_success.png",
        "decoupling_study_smoke_maps.png",
    }


def test_arms_of_a_seed_start_from_the_same_language_model(place, recipe):
    seed = PHASES["tuning"].training
    path = base_path(recipe, seed, place[1])
    time = path.stat().st_mtime_ns
    assert prepare_base(recipe, seed, place[1]) == path
    assert path.stat().st_mtime_ns == time, "pretrained once"
    again, other = pretrain(recipe, seed), pretrain(recipe, seed + 1)
    models = {arm: make_model(recipe, ARMS[arm], seed) for arm in ("weakest", "queries_5")}
    for model in models.values():
        start_from(model, path)
        own = dict(model.vlm.named_parameters())
        assert all(torch.equal(weight, again[name]) for name, weight in own.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in again.items())
    assert base_path(replace(recipe, base_steps=9), seed, place[1]) != path
    assert base_path(replace(recipe, train_steps=9), seed, place[1]) == path


def test_the_base_is_asked_for_what_the_table_says():
    rng, text = np.random.default_rng(0), {number: word for word, number in vocabulary().items()}
    for _ in range(20):
        ids, labels = lookup_sample(rng)
        said = [text.get(i, "") for i in ids]
        table = dict(zip(said[1:9:3], said[2:9:3], strict=True))  # name place , name place , name place .
        asked = [(said[i - 1], said[i]) for i, label in enumerate(labels) if label != -100]
        assert len(asked) == 6
        assert all(table[name] == place for name, place in asked)


def test_a_second_run_has_the_same_outcomes(place, capsys):
    assert decoupling_study.main([*place[0], "--reproduce", "random", "0"]) == 0
    assert "the same outcomes" in capsys.readouterr().out
    path = result_path(place[1], "random", 0)
    kept = path.read_text()
    changed = json.loads(kept)
    changed["losses"][0]["action"] += 1e-4
    path.write_text(json.dumps(changed))
    assert decoupling_study.main([*place[0], "--reproduce", "random", "0"]) == 1
    assert "differs in losses" in capsys.readouterr().out
    path.write_text(kept)


def test_what_is_done_is_not_run_again_and_another_recipe_is_refused(place, recipe, monkeypatch, capsys):
    path = result_path(place[1], "random", 0)
    time = path.stat().st_mtime_ns
    (path.parent / f".{path.name}.killed").write_text("{")  # what a killed process may leave
    assert decoupling_study.main(place[0]) == 0
    assert path.stat().st_mtime_ns == time
    assert finished(place[1], recipe, "random", 1) is None
    monkeypatch.setattr(decoupling_study, "SMOKE", {**QUICK, "train_steps": 3})
    assert decoupling_study.main(place[0]) == 1
    assert "name another --output" in capsys.readouterr().err


def test_a_run_that_dies_leaves_nothing_that_counts(recipe, place, tmp_path, monkeypatch):
    from benchmarks import decoupling_study_run

    monkeypatch.setattr(decoupling_study_run, "measure", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_into(recipe, "tuning", "silent_off", 0, place[1], {})
    assert finished(place[1], recipe, "silent_off", 0) is None


def test_arms_of_a_seed_get_the_same_samples(recipe, place):
    data, _ = demonstrations(recipe, PHASES["tuning"], place[1])
    draws = {arm: Batches(data, recipe, ARMS[arm], 5).draw() for arm in ("weakest", "silent_off", "queries_5")}
    other = Batches(data, recipe, ARMS["weakest"], 6).draw()
    for arm in ("silent_off", "queries_5"):
        for part in (2, 3, 4):
            assert torch.equal(draws[arm][part], draws["weakest"][part])
        assert torch.equal(draws[arm][1].pixel_values, draws["weakest"][1].pixel_values)
    assert not torch.equal(other[3], draws["weakest"][3])
    prompts = {arm: own[0].ids[own[0].labels == -100].tolist() for arm, own in draws.items()}
    left = {arm: [i for i in ids if i not in (PAD, QUERY)] for arm, ids in prompts.items()}
    assert left["weakest"] == left["silent_off"] == left["queries_5"]
    assert (draws["silent_off"][0].labels == -100).all()


def test_frames_belong_to_their_instruction_and_early_ones_come_more_often(recipe, place):
    data, _ = demonstrations(recipe, PHASES["tuning"], place[1])
    number = {word: i for i, word in vocabulary().items()}
    seen = {power: [] for power in (1.0, 2.0)}
    for power, ages in seen.items():
        batches = Batches(data, replace(recipe, frame_power=power, frames_per_text=40), ARMS["weakest"], 1)
        texts, observation, chunks, *_ = batches.draw()
        for row, ids in enumerate(texts.labels.tolist()):
            named = TARGETS_BY_WORD[[number[i] for i in ids if i in number and number[i] in TARGETS_BY_WORD][-1]]
            own = slice(row * 40, (row + 1) * 40)
            shown = observation.pixel_values[own].flatten(2)[:, :3, 7:]  # (frames, things, targets)
            assert shown[..., named].any(1).all(), "the named thing is on the table"
            ages += [int((data.actions == chunk[0].numpy()).all(1).argmax()) for chunk in chunks[own]]
    first = {
        power: np.mean([age - data.starts[data.starts <= age].max() for age in ages]) for power, ages in seen.items()
    }
    assert first[2.0] == pytest.approx(first[1.0] * 2 / 3, rel=0.15)


def test_states_without_a_thought_are_those_of_prompt_and_queries(recipe):
    model = make_model(recipe, ARMS["silent_off"], 0)
    texts = ["put the red cube on the pad", "I am thirsty", "what is 3 plus 4?"]
    things = [[16, 18], [10, 11, 12], [3, 7]]
    silent, nothing = thoughtful_states(model, texts, things, False)
    assert nothing == [""] * 3
    assert silent.shape == (3, 10, recipe.vlm_width)
    np.testing.assert_allclose(silent.numpy(), given_states(model, texts, things, [None] * 3).numpy(), atol=1e-5)
    thinking, said = thoughtful_states(model, texts, things, True)
    assert len(said) == 3
    assert not np.allclose(thinking.numpy(), silent.numpy(), atol=1e-3)
