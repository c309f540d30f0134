"""robomimic's and LIBERO's HDF5: values, instruction, orientation, and files that are none."""

from dataclasses import replace

import numpy as np
import pytest
from source_files import numbers, picture, write_libero

from syvla.processing import RobotDataset
from syvla.processing.conversion.mapping import load_preset
from syvla.processing.conversion.pipeline import convert
from syvla.processing.conversion.proposal import propose
from syvla.processing.conversion.robomimic import RobomimicSource
from syvla.processing.conversion.source import SourceError


def test_libero_demonstrations_are_turned_as_its_evaluations_show_them(tmp_path):
    write_libero(tmp_path / "source/KITCHEN_SCENE1_open_the_top_drawer_demo.hdf5")
    (tmp_path / "source/broken_demo.hdf5").write_bytes(b"nothing")
    source = RobomimicSource(tmp_path / "source")
    assert source.preset() == "libero"
    report = convert(source, tmp_path / "out", replace(load_preset("libero"), storage="image"), progress=False)
    assert [entry["source"].rsplit(":")[-1] for entry in report.converted] == ["demo_0", "demo_1"]
    assert [entry["source"] for entry in report.dropped] == ["broken_demo.hdf5"]
    dataset = RobotDataset(tmp_path / "out", embodiment="libero", chunk_size=1)
    assert (dataset.fps, dataset.num_episodes, len(dataset)) == (20, 2, 7)
    for index in range(7):
        item = dataset[index]
        episode, step = item["episode_index"], item["frame_index"]
        ee, gripper = numbers(episode, 4, 6)[step] + 9, numbers(episode, 4, 2)[step] + 14
        np.testing.assert_allclose(item["state"], [*ee, *gripper], rtol=1e-6)
        np.testing.assert_allclose(item["actions"][0], numbers(episode, 4, 7)[step], rtol=1e-6)
        upright = picture(episode, step, 0, (32, 32))
        np.testing.assert_array_equal(item["images"]["center"], upright[:, ::-1])  # half a turn of the stored picture
        assert item["text"] == "open the top drawer"
    assert report.units()["action"][-1] == "command"


def test_other_robomimic_files_get_a_mapping_with_open_questions(tmp_path):
    source = RobomimicSource(write_libero(tmp_path / "demo.hdf5"))
    found = propose(source)
    assert [spec.source for spec in found.action] == ["actions"]
    assert {spec.source for spec in found.state} == {"obs/ee_states", "obs/gripper_states", "obs/joint_states"}
    assert found.task_source == "language_instruction"
    assert len(found.open_questions()) == 1  # fps


def test_folder_without_files_and_files_without_demonstrations(tmp_path):
    import h5py

    with pytest.raises(SourceError, match=r"no \.hdf5 files"):
        RobomimicSource(tmp_path).episodes()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = 1
    assert "no group data" in RobomimicSource(tmp_path).episodes()[0].problem


def test_demonstrations_that_are_links_to_other_files_are_refused(tmp_path):
    import h5py

    secret = write_libero(tmp_path / "elsewhere/secret.hdf5")
    with h5py.File(write_libero(tmp_path / "source/a_demo.hdf5"), "a") as file:
        file["data/demo_2"] = h5py.ExternalLink(str(secret), "data/demo_0")
        file["data/demo_3"] = h5py.SoftLink("/data/demo_0")
    mapping = replace(load_preset("libero"), storage="image")
    report = convert(RobomimicSource(tmp_path / "source"), tmp_path / "out", mapping, progress=False)
    assert len(report.converted) == 2
    assert [entry["source"] for entry in report.dropped] == ["a_demo.hdf5:demo_2", "a_demo.hdf5:demo_3"]
    assert all("a link to another place or file" in entry["reason"] for entry in report.dropped)
