"""Recipes are checked from metadata alone: the one that names public data, and every kind of wrong entry."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks.throttled_server import FolderServer
from syvla.training.data_check import check_recipe, main

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
RECIPE = ROOT / "training/recipes/pretrain_oxe.yaml"
CAMERAS = {"center": "observation.images.head", "left_wrist": "observation.images.left_wrist"}


def recipe(folder: Path, *specs: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"robot_datasets": list(specs)}))
    return path


def entry(**values) -> dict:
    return {"path": str(DATA / "lerobot_v3_tiny"), "embodiment": "toy", "cameras": CAMERAS, **values}


def test_metadata_alone_is_enough(tmp_path, capsys):
    """The dataset has no frames: only `meta/` was fetched."""
    shutil.copytree(DATA / "lerobot_v3_tiny/meta", tmp_path / "set/meta")
    path = recipe(tmp_path, entry(path=str(tmp_path / "set"), weight=2, license="mit"))
    (check,) = check_recipe(path)
    assert check.problems == []
    assert (check.version, check.episodes, check.frames, check.fps) == ("v3.0", 2, 7, 10)
    assert check.dimensions == {"state": 2, "action": 3}
    assert main(["--config", str(path), "--output", str(tmp_path / "out.json")]) == 0
    assert "100.0%" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())[0]["license"] == "mit"


def test_a_streamed_dataset_is_checked_from_its_metadata(tmp_path):
    with FolderServer.running(DATA / "lerobot_v3_tiny") as server:
        streamed = {"path": server.url, "streaming": True, "cache_gb": 1, "cache_dir": str(tmp_path / "cache")}
        good, without, local = check_recipe(
            recipe(tmp_path, entry(**streamed), entry(path=server.url), entry(streaming=True))
        )
        assert {path.split("/")[0] for _, path in server.link.requests} == {"meta"}
    assert (good.problems, good.episodes, good.frames) == ([], 2, 7)
    assert any("is only read with streaming: true" in problem for problem in without.problems)
    assert any("is a local folder, which is read without it" in problem for problem in local.problems)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "nothing"}, "no such folder"),
        ({"cameras": {"center": "observation.images.top"}}, "is no camera; the dataset has"),
        ({"cameras": {"front": "observation.images.head"}}, "'front' is no view of the model"),
        ({"state_key": "qpos"}, "'qpos' is no vector feature"),
        ({"units": {"state": ["rad"], "action": ["m", "m", "m"]}}, "1 for the 2 dimensions of the state"),
        ({"embodiment": None}, "names no embodiment"),
        ({"weight": 0}, "weight: expected a number above 0"),
    ],
)
def test_wrong_entries_are_named(tmp_path, values, message):
    (check,) = check_recipe(recipe(tmp_path, entry(**values)))
    assert any(re.search(message, problem) for problem in check.problems), check.problems


def test_all_problems_of_all_entries_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = DATA / "lerobot_v061_modalities"  # two state dimensions as well, of other names
    path = recipe(tmp_path, entry(weight=1), {"path": str(other), "embodiment": "toy"}, entry(path="no", weight=1))
    assert main(["--config", str(path)]) == 1
    said = capsys.readouterr().err
    for part in ("weight: expected", "action dimensions 2, but", "state names ['a', 'b'], but", "no: no such folder"):
        assert part in said


def test_public_recipe_names_data_that_training_can_open(monkeypatch):
    """With a Hub that holds, for every id, what the converter of these sets writes by its own code."""
    specs = yaml.safe_load(RECIPE.read_text())["robot_datasets"]
    assert len(specs) >= 7
    folders = {}

    def snapshot_download(repo_id, revision, allow_patterns, **options):
        assert allow_patterns == ["meta/*"], "nothing but metadata"
        return str(folders[repo_id])

    def dataset_info(self, repo_id, **options):
        card = SimpleNamespace(license="apache-2.0")
        return SimpleNamespace(card_data=card, siblings=[SimpleNamespace(size=2 * 10**9), SimpleNamespace(size=None)])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs:
            folders[spec["path"]] = copy_for(spec, Path(folder) / spec["path"].replace("/", "_"))
        checks = check_recipe(RECIPE)
    assert [check.problems for check in checks] == [[]] * len(specs)
    assert {check.gigabytes for check in checks} == {2.0}
    assert {check.version for check in checks} == {"v2.0"}
    assert sum(check.weight for check in checks) == pytest.approx(7.28)
    assert len({check.embodiment for check in checks}) == len(specs), "each convention is a robot of its own"


def copy_for(spec: dict, folder: Path) -> Path:
    """Metadata of version 2.0 with the cameras that the entry names."""
    shutil.copytree(DATA / "lerobot_v21_tiny/meta", folder / "meta")
    info = json.loads((folder / "meta/info.json").read_text())
    features = {key: value for key, value in info["features"].items() if "images" not in key}
    camera = {"dtype": "video", "shape": [256, 256, 3], "names": ["height", "width", "rgb"], "info": {}}
    features |= dict.fromkeys(spec["cameras"].values(), camera)
    (folder / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0", "features": features}))
    return folder


def test_license_that_differs_from_the_card_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(DATA / "lerobot_v3_tiny"))
    found = SimpleNamespace(card_data=SimpleNamespace(license="cc-by-nc-4.0"), siblings=[])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: found)
    (check,) = check_recipe(recipe(tmp_path, entry(path="org/set", license="mit")))
    assert "the recipe says 'mit', the Hub's card 'cc-by-nc-4.0'" in check.problems[0]


@pytest.mark.parametrize("text", ["[", "a: 1", "robot_datasets: 3", "robot_datasets: [{embodiment: x}]"])
def test_files_that_are_no_recipe(tmp_path, text, capsys):
    (tmp_path / "a.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "a.yaml")]) == 1
    assert "a.yaml" in capsys.readouterr().err
