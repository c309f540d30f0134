"""The examples of docs/extending.md run as they stand, and the names on the page exist."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Imports a block of the page as a module: `example(name)`."""

    def load(name):
        (tmp_path / f"{name}.py").write_text(BLOCKS[name], encoding="utf-8")
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield load
    for name in BLOCKS:
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)


def test_every_example_is_short_and_tested_here():
    assert PAGE.count("```python") == len(BLOCKS)
    tested = Path(__file__).read_text(encoding="utf-8")
    for name, block in BLOCKS.items():
        assert len(block.splitlines()) < 60, name
        assert f'example("{name}")' in tested, name


def test_a_simulator(example, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    ran = example("drive_own_environment")
    assert ran.info["success"]
    assert 1 < ran.steps < 50
    assert capsys.readouterr().out.startswith("reach the near goal True")


def test_the_attributes_of_a_simulator_are_those_that_are_checked():
    from syvla.evaluation.environments.custom import _ATTRIBUTES, _VIEWS

    rows = "\n".join(re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE))
    named = {name.partition("(")[0] for name in re.findall(r"`([^`]+)`", rows)}
    assert set(_ATTRIBUTES) <= named
    assert all(f"`{view}`" in PAGE for view in _VIEWS)


def test_a_dataset_format(example, tmp_path):
    from syvla.processing import RobotDataset

    npz_format = example("npz_format")
    random = np.random.default_rng(0)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    kept = []
    for number, length in enumerate((5, 7)):
        joints, command = random.normal(size=(2, length, 3)).astype(np.float32)
        top = random.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8)
        np.savez(recordings / f"{number}.npz", joints=joints, command=command, top=top)
        kept.append((joints, command, top))
    np.savez(recordings / "broken.npz", joints=np.zeros((4, 3)))
    npz_format.convert_folder(recordings, tmp_path / "data")
    dataset = RobotDataset(tmp_path / "data", embodiment="arm", chunk_size=2)
    assert list(dataset.episode_lengths) == [5, 7]
    np.testing.assert_array_equal(dataset.read_image("center", 5), kept[1][2][0])
    assert "broken.npz" in (tmp_path / "data" / "meta" / "conversion_report.md").read_text(encoding="utf-8")


def test_a_robot(example):
    ran = example("my_arm")
    assert ran.chunk.shape == (1, 8, 4)
    assert np.isfinite(np.asarray(ran.chunk)).all()
    assert ran.processor.embodiments["my_arm"]["control_hz"] == 10.0


def test_another_vlm(example):
    import torch

    from syvla.processing import build_tiny_processor

    model = example("other_vlm").model
    assert model.config.vlm_config.model_type == "qwen2_vl"
    processor = build_tiny_processor(model.config)
    spread = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": spread, "action": spread})
    inputs = processor(images={"center": np.zeros((32, 32, 3), np.uint8)}, text="lift", state=np.zeros(14))
    assert torch.isfinite(model.predict_actions(**inputs).actions).all()


def test_the_families_of_the_page_are_those_of_the_code():
    from syvla.modeling_syvla.checkpoint_parts import VLM_FAMILIES

    section = PAGE.split("## Another vision-language model")[1].split("```")[0]
    assert set(re.findall(r"`(qwen\w+)`", section)) == set(VLM_FAMILIES)


def test_an_image_encoder(example):
    pytest.importorskip("faiss", reason="an extra: pip install 'syvla[rl]'")
    similarity = example("color_encoder").similarity
    red, blue = np.zeros((8, 8, 3), np.uint8), np.zeros((12, 6, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    assert similarity(red, red) == pytest.approx(1)
    # Of three unit counts in each histogram, red and blue share the one of green's lowest level: a third.
    assert similarity(red, blue) == pytest.approx(1 / 3)


def test_an_image_encoder_names_the_kinds_that_exist():
    from syvla.training.retrieval.image_encoders import KINDS

    assert set(re.findall(r"`(\w+):[A-Z]\w+", PAGE.split("## An image encoder")[1])) == set(KINDS)
