"""Statistics out of the metadata are those of all frames, for any choice of episodes; what is not stated is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_recordings import record

from syvla.processing.robot_data.metadata import read_metadata
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.stated_statistics import NotStatedError, pool_statistics, stated_statistics
from syvla.processing.robot_data.vector_parts import VectorPart

DATA = Path(__file__).parents[2] / "data"
PARTS = {
    "state": [VectorPart("observation.state", 1, 3), VectorPart("action", 0, 1)],
    "action": [VectorPart("action", 0, 2)],
}


@pytest.fixture
def root(tmp_path):
    return record(tmp_path / "set", (5, 7, 4))


def vectors(root, episodes):
    """State and action (n, D) of the parts above, by the reader of all frames."""
    data = RobotDataset(root, embodiment="robot", episodes=episodes)
    return {"state": np.concatenate([data.states[:, 1:3], data.actions[:, :1]], 1), "action": data.actions}


@pytest.mark.parametrize("episodes", [[0, 1, 2], [2, 0], [1]])
def test_moments_of_any_episodes_are_exact(root, episodes):
    found = stated_statistics(read_metadata(root), episodes, PARTS)
    for kind, values in vectors(root, episodes).items():
        values = values.astype(np.float64)
        expected = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
        for name, value in expected.items():
            np.testing.assert_allclose(found[kind][name], value, rtol=1e-6, atol=1e-9)
        assert found[kind]["count"] == [len(values)]
        assert ("q01" in found[kind]) == (len(episodes) == 3), "quantiles are stated for the whole dataset alone"


def test_without_the_datasets_own_file_those_of_the_episodes_are_pooled(root):
    whole = stated_statistics(read_metadata(root), [0, 1, 2], PARTS)
    (root / "meta/stats.json").unlink()
    pooled = stated_statistics(read_metadata(root), [0, 1, 2], PARTS)
    for kind in PARTS:
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(pooled[kind][name], whole[kind][name], rtol=1e-6, atol=1e-9)
        assert "q50" not in pooled[kind]


def test_several_datasets_are_pooled_exactly_and_without_quantiles(root):
    metadata = read_metadata(root)
    parts = pool_statistics(
        {"a": stated_statistics(metadata, [0], PARTS), "b": stated_statistics(metadata, [1, 2], PARTS)}
    )
    whole = stated_statistics(metadata, [0, 1, 2], PARTS)
    for kind in PARTS:
        np.testing.assert_allclose(parts[kind]["std"], whole[kind]["std"], rtol=1e-6, atol=1e-9)
        assert parts[kind]["count"] == whole[kind]["count"] == [16]
        assert "q50" not in parts[kind]
    narrow = stated_statistics(metadata, [0], {**PARTS, "action": [VectorPart("action", 0, 1)]})
    with pytest.raises(
        ValueError, match="action: datasets of one embodiment have different dimensions: a has 2, b has 1"
    ):
        pool_statistics({"a": whole, "b": narrow})


def test_what_is_not_stated_or_damaged_is_refused(root, tmp_path):
    metadata = read_metadata(root)
    with pytest.raises(NotStatedError, match="delta_actions: statistics of differences need all frames"):
        stated_statistics(metadata, [0], PARTS, delta_actions=[0, -1])
    assert stated_statistics(metadata, [0], PARTS, delta_actions=[-1, -1]), "all absolute"
    content = json.loads((root / "meta/stats.json").read_text())
    content["action"]["mean"] = [1.0]
    (root / "meta/stats.json").write_text(json.dumps(content))
    with pytest.raises(
        NotStatedError, match=r"meta/stats.json: action.mean has 1 values, meta/info.json says 2; restore"
    ):
        stated_statistics(metadata, [0, 1, 2], PARTS)
    content["action"]["mean"] = [1.0, float("nan")]
    (root / "meta/stats.json").write_text(json.dumps(content))
    with pytest.raises(NotStatedError, match="holds values that are not finite"):
        stated_statistics(metadata, [0, 1, 2], PARTS)
    old = Path(shutil.copytree(DATA / "lerobot_v21_tiny", tmp_path / "old"))
    (old / "meta/episodes_stats.jsonl").unlink(missing_ok=True)
    (old / "meta/stats.json").unlink(missing_ok=True)
    whole = {kind: [VectorPart(key, 0, 2)] for kind, key in (("state", "observation.state"), ("action", "action"))}
    with pytest.raises(NotStatedError, match=r"the metadata states none of observation.state, action for each episode"):
        stated_statistics(read_metadata(old), [0], whole)


def test_episodes_of_version_2_1_are_pooled_exactly(tmp_path):
    old = Path(shutil.copytree(DATA / "lerobot_v21_tiny", tmp_path / "old"))
    (old / "meta/stats.json").unlink(missing_ok=True)
    cameras = {"center": "observation.images.head"}
    lines = []
    for episode in (0, 1):
        data = RobotDataset(old, embodiment="toy", episodes=[episode], cameras=cameras)
        stats = {
            key: {name: getattr(values.astype(np.float64), name)(0).tolist() for name in ("mean", "std", "min", "max")}
            for key, values in (("observation.state", data.states), ("action", data.actions))
        }
        lines.append(json.dumps({"episode_index": episode, "stats": stats}))
    (old / "meta/episodes_stats.jsonl").write_text("\n".join(lines) + "\n")
    data = RobotDataset(old, embodiment="toy", cameras=cameras)
    whole = {"state": [VectorPart("observation.state", 0, 2)], "action": [VectorPart("action", 0, 3)]}
    found = stated_statistics(read_metadata(old), [0, 1], whole)
    for kind, values in (("state", data.states), ("action", data.actions)):
        np.testing.assert_allclose(found[kind]["mean"], values.astype(np.float64).mean(0), rtol=1e-9)
        np.testing.assert_allclose(found[kind]["std"], values.astype(np.float64).std(0), rtol=1e-9)
