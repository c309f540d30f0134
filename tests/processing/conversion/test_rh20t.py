"""RH20T's folders: streams with clocks of their own on one grid, and scenes that cannot be used."""

import numpy as np
import pytest
from source_files import RH20T_CAMERAS, picture, write_rh20t

from syvla.processing import RobotDataset
from syvla.processing.conversion.formats import open_source
from syvla.processing.conversion.mapping import load_preset
from syvla.processing.conversion.pipeline import convert
from syvla.processing.conversion.rh20t import Rh20tSource, nearest
from syvla.processing.conversion.source import SourceError

FRONT, WRIST = RH20T_CAMERAS


def converted(root, out):
    mapping = load_preset("rh20t_cfg3")
    return convert(open_source("rh20t", root, mapping.options), out, mapping, progress=False, video_codec="h264")


def test_every_value_of_a_scene_at_its_time(tmp_path):
    write_rh20t(tmp_path / "set", 1)
    write_rh20t(tmp_path / "set", 2, length=5)
    (tmp_path / "set/task_0001_user_0002_scene_0003_cfg_0003_human").mkdir()
    assert Rh20tSource(tmp_path / "set").preset() == "rh20t_cfg3"
    report = converted(tmp_path / "set", tmp_path / "out")
    assert report.dropped == []
    dataset = RobotDataset(tmp_path / "out", embodiment="ur5", chunk_size=1)
    # The grid begins with the camera that is last (7 ms) and ends with the one that is first; the last step has no next.
    assert dataset.episode_lengths.tolist() == [6, 3]
    assert dataset.fps == 10
    for index in range(len(dataset)):
        item = dataset[index]
        number, step = item["episode_index"] + 1, item["frame_index"]
        now, later = number + step / 100, number + (step + 1) / 100
        pose = np.array([now, 2 * now, 3 * now, 1, 0, 0, 0])
        np.testing.assert_allclose(item["state"], [*pose, *(np.arange(6) + now), 0.005 * now], rtol=1e-6)
        expected = [later, 2 * later, 3 * later, 1, 0, 0, 0, 0.01 * later]
        np.testing.assert_allclose(item["actions"][0], expected, rtol=1e-6)
        assert item["text"] == "Press the button"
        shown = item["images"]["center"].astype(int)
        assert np.abs(shown[5:20, 5:25] - picture(number, step, 0)[5:20, 5:25]).max() <= 12  # video twice
    assert report.units()["action"] == ["m"] * 3 + ["quaternion"] * 4 + ["m"]


def test_nearest_takes_the_closer_one_and_names_gaps():
    times = np.array([0.0, 100, 210, 300])
    assert nearest("a", times, np.array([10.0, 149, 156, 300]), 60).tolist() == [0, 1, 2, 3]
    with pytest.raises(SourceError, match=r"a: the clock jumps: 150 ms without a value at step 1 \(150 ms\)"):
        nearest("a", np.array([0.0, 300]), np.array([0.0, 150]), 100)


def test_unusable_scenes_are_named_together(tmp_path):
    root = tmp_path / "set"
    write_rh20t(root, 1)
    jumped = write_rh20t(root, 2, length=12)
    content = np.load(jumped / FRONT / "timestamps.npy", allow_pickle=True).item()  # the test's own file
    content["color"] = [time + (900 if position > 4 else 0) for position, time in enumerate(content["color"])]
    np.save(jumped / FRONT / "timestamps.npy", content)
    write_rh20t(root, 3, **{f"{WRIST}_frames": 5})
    (write_rh20t(root, 4) / "transformed/gripper.npy").unlink()
    cut = write_rh20t(root, 5) / FRONT / "color.mp4"
    cut.write_bytes(cut.read_bytes()[:400])
    torn = write_rh20t(root, 6) / "transformed/tcp_base.npy"
    torn.write_bytes(torn.read_bytes()[:200])
    lost = write_rh20t(root, 7)
    (lost / WRIST).rename(lost / "wrist")
    report = converted(root, tmp_path / "out")
    assert [entry["source"][-16:-9] for entry in report.converted] == ["ne_0001"]
    reasons = [entry["reason"] for entry in report.dropped]
    for reason, part in zip(
        reasons,
        ("cam_038522062288: the clock jumps", "color.mp4: 5 frames, timestamps.npy names 8", "gripper.npy is missing",
         "no readable video", "tcp_base.npy: no dictionary that numpy saved", f"cameras ['{WRIST}'] are missing"),
        strict=True,
    ):  # fmt: skip
        assert part in reason


def test_scenes_of_two_robots_are_refused(tmp_path):
    write_rh20t(tmp_path / "set", 1)
    write_rh20t(tmp_path / "set", 2, configuration=1)
    with pytest.raises(SourceError, match=r"configurations \[1, 3\], which are different robots"):
        Rh20tSource(tmp_path / "set").episodes()
    assert len(Rh20tSource(tmp_path / "set", configuration=3).episodes()) == 1
    with pytest.raises(SourceError, match="options"):
        open_source("rh20t", tmp_path / "set", {"rates": 3})
