"""Recordings can be read back and show the frames, in order, with the last one held."""

import av
import numpy as np
import pytest
from PIL import Image

from syvla.evaluation.episode_video import EpisodeVideo

pytestmark = pytest.mark.smoke


def episode(steps: int, size: int = 32) -> EpisodeVideo:
    """An episode whose left picture is red and brightens with time, and whose right picture is green."""
    video = EpisodeVideo("lift the red cube", control_hz=10, view_height=64)
    for step in range(steps):
        left = np.zeros((size, size, 3), np.uint8)
        left[..., 0] = 55 + 200 * step // max(1, steps - 1)
        right = np.zeros((size, size, 3), np.uint8)
        right[..., 1] = 200
        video.add({"left": left, "right": right}, "reach the red cube" if step == 0 else None)
    return video


def test_mp4_plays_at_control_rate_with_every_step_in_order(tmp_path):
    video = episode(steps=12)
    video.finish(success=True)
    video.write_mp4(tmp_path / "episode.mp4", hold_seconds=0.5)
    with av.open(str(tmp_path / "episode.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 12 - 1 + 5
    reds = [int(frame[20:50, 20:50, 0].mean()) for frame in frames]
    assert reds[:12] == sorted(reds[:12])
    assert reds[0] < 70
    assert reds[-1] > 240
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0


def test_views_stand_side_by_side_and_keep_their_pixels():
    video = episode(steps=1)
    frame = video.frames[0]
    assert frame.shape[0] == 64
    assert (frame[:, :64] == [55, 0, 0]).all(), "the first view, enlarged without smoothing"
    assert (frame[:, -64:] == [0, 200, 0]).all(), "the last view"


def test_views_of_different_sizes_are_accepted():
    video = EpisodeVideo("look", control_hz=10, view_height=64)
    video.add({"head": np.zeros((48, 64, 3), np.uint8), "wrist": np.zeros((32, 32, 3), np.uint8)})
    assert video.frames[0].shape[0] == 64


def test_contact_sheet_shows_first_and_last_moment(tmp_path):
    video = episode(steps=30)
    video.write_contact_sheet(tmp_path / "sheet.png", pictures=4, columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    height, width = sheet.shape[0] // 2, sheet.shape[1] // 2
    assert sheet[20, 20, 0] == 55
    assert sheet[height + 20, width + 20, 0] == 255


def test_contact_sheet_of_a_short_episode_has_one_picture_per_step(tmp_path):
    video = episode(steps=1)
    video.write_contact_sheet(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height < 150


def test_the_last_thought_stays_and_long_text_is_cut(tmp_path):
    video = EpisodeVideo("an instruction " * 50, control_hz=10)
    for thought in ("first\nwith a line break", None, "second " * 50, None):
        video.add({"head": np.zeros((8, 8, 3), np.uint8)}, thought)
    assert video.thoughts[1] == video.thoughts[0]
    video.write_mp4(tmp_path / "episode.mp4")


def test_bad_input_is_named(tmp_path):
    video = EpisodeVideo("lift", control_hz=10)
    with pytest.raises(ValueError, match="no frame was added"):
        video.write_mp4(tmp_path / "episode.mp4")
    with pytest.raises(ValueError, match=r"camera head: expected \(H, W, 3\) uint8, got \(3, 8, 8\)"):
        video.add({"head": np.zeros((3, 8, 8), np.uint8)})
    with pytest.raises(ValueError, match=r"camera head: .* got \(0, 8, 3\)"):
        video.add({"head": np.zeros((0, 8, 3), np.uint8)})
    with pytest.raises(ValueError, match="images: expected at least one camera"):
        video.add({})
    video.add({"head": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(ValueError, match="head, wrist together make 264 x 128 pixels, but 128 x 128 in the first step"):
        video.add({"head": np.zeros((8, 8, 3), np.uint8), "wrist": np.zeros((8, 8, 3), np.uint8)})
    assert len(video.frames) == len(video.thoughts) == 1


@pytest.mark.parametrize("control_hz", [0, -5, float("nan"), float("inf"), 1e-9, True, "10"])
def test_a_bad_rate_is_named(control_hz):
    with pytest.raises(ValueError, match="control_hz: expected control steps per second"):
        EpisodeVideo("lift", control_hz)


def test_frames_that_no_encoder_takes_are_named(tmp_path):
    """With PyAV 19 a frame for an encoder that could not be opened ends the process; this test would end with it."""
    video = EpisodeVideo("lift", control_hz=10)
    video.add({"head": np.zeros((8, 2000, 3), np.uint8)})  # 128 x 32000 pixels when enlarged
    with pytest.raises(ValueError, match=r"frames of 32016 x \d+ pixels cannot be encoded"):
        video.write_mp4(tmp_path / "episode.mp4")
    assert not list(tmp_path.iterdir())
