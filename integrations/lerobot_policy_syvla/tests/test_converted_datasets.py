"""What `syvla-convert` makes of other formats opens in LeRobotDataset with the same values as in SyVLA's reader."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_datasets import CHUNK, assert_equal_items, open_theirs

from syvla.processing import RobotDataset
from syvla.processing.conversion.formats import open_source
from syvla.processing.conversion.mapping import load_preset
from syvla.processing.conversion.pipeline import convert

TESTS = Path(__file__).resolve().parents[3] / "tests"
sys.path.insert(0, str(TESTS / "support"))

from source_files import write_aloha, write_libero, write_rh20t  # noqa: E402


def prepare(name: str, folder: Path) -> tuple[str, Path, str]:
    """(format, source, preset) of two small episodes."""
    if name == "rlds":
        return "rlds", TESTS / "data/rlds_tiny", "oxe_bridge"
    if name == "libero":
        write_libero(folder / "open_the_drawer_demo.hdf5")
        return "robomimic", folder, "libero"
    if name == "rh20t":
        for number in range(2):
            write_rh20t(folder, number)
        return "rh20t", folder, "rh20t_cfg3"
    for episode in range(2):
        write_aloha(folder / f"episode_{episode}.hdf5", episode, compressed=True)
    return "aloha-hdf5", folder, "aloha"


@pytest.mark.parametrize("storage", ["image", "video"])
@pytest.mark.parametrize("name", ["aloha", "libero", "rlds", "rh20t"])
def test_converted_datasets_open_in_lerobot(tmp_path, name, storage):
    kind, source, preset = prepare(name, tmp_path / "source")
    mapping = load_preset(preset)
    if mapping.open_questions():
        mapping = replace(mapping, fps=50, task="fold the towel")
    mapping = replace(mapping, storage=storage)
    report = convert(
        open_source(kind, source, mapping.options), tmp_path / "out", mapping, progress=False, video_codec="h264"
    )
    assert (len(report.converted), report.dropped) == (2, [])
    cameras = {view: f"observation.images.{view}" for view in ("front", "wrist", "head")}
    cameras = {view: key for view, key in cameras.items() if key in mapping.cameras}
    ours = RobotDataset(tmp_path / "out", embodiment="x", chunk_size=CHUNK, cameras=cameras)
    theirs = open_theirs(tmp_path / "out", ours.fps)
    assert_equal_items(ours, theirs)
    np.testing.assert_allclose(theirs.meta.stats["action"]["mean"], ours.statistics()["action"]["mean"], atol=1e-6)
