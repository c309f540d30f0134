"""ALOHA's HDF5 in its variants: every value of the result against what was written."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from source_files import CAMERAS, numbers, picture, write_aloha, write_robomind

from syvla.processing import RobotDataset
from syvla.processing.conversion.aloha_hdf5 import AlohaSource
from syvla.processing.conversion.mapping import CameraSpec, ConversionMapping, load_preset
from syvla.processing.conversion.pipeline import convert
from syvla.processing.conversion.proposal import propose
from syvla.processing.conversion.source import SourceError


def mapping(**changes) -> ConversionMapping:
    return replace(load_preset("aloha"), fps=50, task="fold the towel", storage="image", **changes)


def converted(tmp_path, **options):
    return convert(
        AlohaSource(tmp_path / "source"), tmp_path / "out", options.pop("mapping", mapping()), progress=False
    )


def check(root, lengths, tolerance):
    dataset = RobotDataset(root, embodiment="aloha", chunk_size=1)
    assert dataset.episode_lengths.tolist() == lengths
    for index in range(len(dataset)):
        item = dataset[index]
        episode, step = item["episode_index"], item["frame_index"]
        np.testing.assert_array_equal(item["state"], (numbers(episode, step + 1, 14) + 40)[step].astype(np.float32))
        np.testing.assert_array_equal(
            item["actions"][0], (numbers(episode, step + 1, 14) + 100)[step].astype(np.float32)
        )
        for number, view in enumerate(("center", "left_wrist", "right_wrist")):
            expected = picture(episode, step, number).astype(int)
            assert np.abs(item["images"][view].astype(int) - expected).max() <= tolerance
        assert item["text"] == "fold the towel"
    assert dataset.fps == 50
    assert dataset.state_names[:2] == ["left_waist", "left_shoulder"]


@pytest.mark.parametrize(("compressed", "tolerance"), [(False, 0), (True, 12)])
def test_every_value_of_raw_and_compressed_episodes(tmp_path, compressed, tolerance):
    """JPEG changes values at the two edges of the test picture by a few levels."""
    for episode, length in enumerate((5, 3)):
        write_aloha(tmp_path / f"source/episode_{episode}.hdf5", episode, length, compressed)
    report = converted(tmp_path)
    assert (len(report.converted), report.dropped) == (2, [])
    check(tmp_path / "out", [5, 3], tolerance)


def test_episode_10_comes_after_episode_9(tmp_path):
    for episode in (9, 10, 1):
        write_aloha(tmp_path / f"source/episode_{episode}.hdf5", episode, 2)
    assert [entry["source"] for entry in converted(tmp_path).converted] == [
        "episode_1.hdf5",
        "episode_9.hdf5",
        "episode_10.hdf5",
    ]


def test_robomind_with_channels_turned_round(tmp_path):
    """RoboMIND's recorder hands RGB to an encoder that expects BGR, as `channels: bgr` says."""
    write_robomind(tmp_path / "source/a/trajectory.hdf5", 3)
    source = AlohaSource(tmp_path / "source")
    assert source.preset() is None
    found = propose(source)
    assert found.task_source == "language_raw"
    assert [spec.source for spec in found.action] == ["master/joint_position_left", "master/joint_position_right"]
    cameras = {name: CameraSpec(camera.source, channels="bgr") for name, camera in found.cameras.items()}
    report = convert(source, tmp_path / "out", replace(found, fps=30, cameras=cameras, storage="image"), progress=False)
    assert report.skipped == ["observations/depth_images/camera_front (depth)"]
    dataset = RobotDataset(
        tmp_path / "out", embodiment="x", chunk_size=1, cameras={"center": "observation.images.camera_front"}
    )
    for step in range(4):
        item = dataset[step]
        assert np.abs(item["images"]["center"].astype(int) - picture(3, step, 0)).max() <= 12
        np.testing.assert_allclose(item["actions"][0], np.tile(numbers(3, 4, 7)[step] + 50, 2), rtol=1e-6)
        assert item["text"] == "stack the bowls"


# -- bad input ------------------------------------------------------------------------------------------------------------


def test_bad_episodes_are_named_together_and_the_rest_is_converted(tmp_path):
    source = tmp_path / "source"
    write_aloha(source / "episode_0.hdf5", 0)
    (source / "episode_1.hdf5").write_bytes((source / "episode_0.hdf5").read_bytes()[:5000])
    write_aloha(source / "episode_2.hdf5", 2, cam_high_frames=4)
    with h5py.File(write_aloha(source / "episode_3.hdf5", 3), "a") as file:
        del file["observations/images"]
    with h5py.File(write_aloha(source / "episode_4.hdf5", 4), "a") as file:
        file["action"][2, 3] = np.nan
    with h5py.File(write_aloha(source / "episode_5.hdf5", 5, compressed=True), "a") as file:
        file["observations/images/cam_high"][1, 40:] = 0
    write_aloha(source / "episode_6.hdf5", 6, size=(24, 32))
    write_aloha(source / "episode_7.hdf5", 1)
    report = converted(tmp_path)
    assert [entry["source"] for entry in report.converted] == ["episode_0.hdf5", "episode_7.hdf5"]
    reasons = {entry["source"].removesuffix(".hdf5")[-1]: entry["reason"] for entry in report.dropped}
    assert "no HDF5 file, or cut off" in reasons["1"]
    assert "unequal length" in reasons["2"]
    assert "'observations/images/cam_high': 4" in reasons["2"]
    assert "observations/images/cam_high is missing; the episode has no camera" in reasons["3"]
    assert "action: NaN or infinity in 1 frames, the first is 2" in reasons["4"]
    assert "observations/images/cam_high: frame 1 holds" in reasons["5"]
    assert "24 x 32 pixels, the dataset 48 x 64" in reasons["6"]
    check(tmp_path / "out", [5, 5], 0)
    saved = json.loads((tmp_path / "out/meta/conversion_report.json").read_text())
    assert (saved["episodes"], saved["dropped_episodes"], saved["frames"]) == (2, 6, 10)
    assert "episode_4.hdf5" in (tmp_path / "out/meta/conversion_report.md").read_text()


def test_surplus_frames_are_cut_where_the_mapping_allows_and_counted(tmp_path):
    write_aloha(tmp_path / "source/episode_0.hdf5", 0, cam_high_frames=4)
    report = converted(tmp_path, mapping=mapping(trim=1))
    assert report.converted == [{"episode": 0, "source": "episode_0.hdf5", "frames": 4, "trimmed": 1}]
    check(tmp_path / "out", [4], 0)


def test_files_that_point_elsewhere_are_refused(tmp_path):
    secret = write_aloha(tmp_path / "secret.hdf5", 9)
    for number in range(3):
        with h5py.File(write_aloha(tmp_path / f"source/episode_{number}.hdf5", number), "a") as file:
            del file["action"]
            if number == 0:
                file["action"] = h5py.ExternalLink(str(secret), "action")
            elif number == 1:
                layout = h5py.VirtualLayout((5, 14), "f8")
                layout[:] = h5py.VirtualSource(str(secret), "action", (5, 14))
                file.create_virtual_dataset("action", layout)
            else:
                file.create_dataset("action", (5, 14), "f8", external=[(str(secret), 0, 560)])
    with pytest.raises(SourceError, match="no episode can be converted") as caught:
        converted(tmp_path)
    assert str(caught.value).count("copy") == 3


def test_huge_shapes_are_refused_before_allocation(tmp_path):
    with h5py.File(write_aloha(tmp_path / "source/episode_0.hdf5"), "a") as file:
        del file["action"]
        file.create_dataset("action", (2**40, 14), "f8", chunks=(1024, 14))  # takes no space in the file
    with h5py.File(write_aloha(tmp_path / "source/episode_1.hdf5"), "a") as file:
        del file["observations/images/cam_high"]
        file.create_dataset("observations/images/cam_high", (5, 100_000, 100_000, 3), "u1", chunks=(1, 64, 64, 3))
    with pytest.raises(SourceError) as caught:
        converted(tmp_path)
    assert "action: (1099511627776, 14) values" in str(caught.value)
    assert "at most 16777216 pixels" in str(caught.value)


def test_picture_bombs_are_refused_before_they_are_decoded(tmp_path):
    """A JPEG header that announces 60,000 x 60,000 pixels."""
    with h5py.File(write_aloha(tmp_path / "source/episode_0.hdf5", compressed=True), "a") as file:
        dataset = file["observations/images/" + CAMERAS[0]]
        data = dataset[0].tobytes()
        at = data.index(b"\xff\xc0") + 5
        dataset[0] = np.frombuffer(data[:at] + (60_000).to_bytes(2, "big") * 2 + data[at + 4 :], np.uint8)
    with pytest.raises(SourceError, match=r"frame 0: .*(60000|bomb)"):
        converted(tmp_path)
