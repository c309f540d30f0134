"""Names of groups stand for their tasks."""

import pytest

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import expand_tasks


def test_all_is_every_task_and_each_comes_once():
    names = expand_tasks("tabletop", ["place", "all"])
    assert names[0] == "place"
    assert sorted(names) == sorted({*names, "lift", "bar_lift", "calculating", "bagging", "place_named"})
    assert expand_tasks("tabletop", ["fold", "lift"]) == ["fold", "lift"], "what is unknown is named where it is made"


def test_metaworlds_difficulties_part_its_tasks():
    pytest.importorskip("metaworld")
    sizes = {name: len(expand_tasks("metaworld", [name])) for name in ("easy", "medium", "hard", "very_hard", "all")}
    assert sizes == {"easy": 28, "medium": 11, "hard": 6, "very_hard": 5, "all": 50}
    assert len(expand_tasks("metaworld", ["easy", "medium", "hard", "very_hard"])) == 50
    assert expand_tasks("metaworld", ["very_hard"])[0] == "shelf-place-v3"


def test_liberos_suites_are_groups():
    pytest.importorskip("libero")
    assert expand_tasks("libero", ["libero_goal"]) == [f"libero_goal_{i}" for i in range(10)]
    assert len(expand_tasks("libero", ["libero_10", "libero_spatial", "libero_10_9"])) == 20
    assert expand_tasks("libero", ["libero_90"])[-1] == "libero_90_89"
    assert expand_tasks("libero", ["libero_10_swap"]) == [f"libero_10_swap_{i}" for i in range(10)]
    sizes = {name: len(expand_tasks("libero", [name])) for name in ("libero", "libero_90", "all")}
    assert sizes == {"libero": 40, "libero_90": 90, "all": 130}


def test_an_evaluation_runs_every_task_of_a_group():
    options = {"environment_options": {"image_size": 1, "max_steps": 1}, "progress": False}
    result = evaluate_closed_loop("still", tasks="all", episodes=1, **options)
    assert list(result.by_task) == expand_tasks("tabletop", ["all"])
