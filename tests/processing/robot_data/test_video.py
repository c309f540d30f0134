"""Video: frames by time in any order, without needless seeking; clear errors; handles per process."""

from pathlib import Path

import av
import numpy as np
import pytest

from syvla.processing.robot_data.video import (
    VideoError,
    VideoReader,
    VideoWriter,
    default_codec,
    video_info,
)

FPS, FRAMES = 20, 60

pytestmark = pytest.mark.smoke


def level(frame: int) -> int:
    return 20 + 3 * frame


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """The same frames in the recording format, and with distant key frames and reordered frames as others encode."""
    folder = tmp_path_factory.mktemp("videos")
    paths = {"default": folder / "default.mp4", "h264": folder / "h264.mp4", "reordered": folder / "reordered.mp4"}
    for name, codec in (("default", default_codec()), ("h264", "h264")):
        writer = VideoWriter(paths[name], FPS, 32, 48, codec)
        for frame in range(FRAMES):
            writer.write(np.full((32, 48, 3), level(frame), np.uint8))
        writer.close()
    with av.open(str(paths["reordered"]), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "25", "bf": "3", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in range(FRAMES):
            image = np.full((32, 48, 3), level(frame), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return paths


def check(reader: VideoReader, frame: int) -> None:
    image = reader.read(frame / FPS)
    assert image.shape == (32, 48, 3)
    assert image.dtype == np.uint8
    assert abs(image.mean() - level(frame)) < 1.6  # nearer to this frame than to its neighbors


@pytest.mark.parametrize("name", ["default", "h264", "reordered"])
def test_frames_are_found_in_any_order(videos, name):
    reader = VideoReader(videos[name], size=(32, 48))
    assert reader.num_frames == FRAMES
    order = [*range(FRAMES), *np.random.default_rng(0).integers(0, FRAMES, 200), 0, FRAMES - 1, FRAMES - 1, 0]
    for frame in order:
        check(reader, int(frame))


@pytest.mark.parametrize("name", ["default", "h264", "reordered"])
def test_sequential_reading_does_not_seek(videos, name, monkeypatch):
    reader = VideoReader(videos[name])
    seeks = []
    restart = VideoReader._restart
    monkeypatch.setattr(VideoReader, "_restart", lambda self, start: (seeks.append(start), restart(self, start))[1])
    for frame in range(FRAMES):
        check(reader, frame)
        check(reader, frame)
    assert len(seeks) <= 1


def test_frames_are_counted_where_the_file_does_not_state_their_number(tmp_path):
    writer = VideoWriter(tmp_path / "matroska.mkv", FPS, 32, 48, "h264")
    for frame in range(FRAMES):
        writer.write(np.full((32, 48, 3), level(frame), np.uint8))
    writer.close()
    with av.open(str(tmp_path / "matroska.mkv")) as container:
        assert container.streams.video[0].frames == 0
    reader = VideoReader(tmp_path / "matroska.mkv")
    assert reader.num_frames == FRAMES
    check(reader, 11)
    assert reader.num_frames == FRAMES
    check(reader, 12)


def test_a_frame_that_is_missing_is_named(videos):
    reader = VideoReader(videos["default"])
    for time in (FRAMES / FPS, 0.02, -1.0):
        with pytest.raises(VideoError, match=rf"default\.mp4: no frame at {time:.6f} s"):
            reader.read(time)
        check(reader, 1)  # the reader goes on working
    check(reader, 7)
    reader.read(0.02, tolerance=0.03)


def test_damaged_files_are_named(videos, tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4: the video file is missing"):
        VideoReader(tmp_path / "gone.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(VideoError, match=r"text\.mp4: the video cannot be read"):
        VideoReader(text)
    content = bytearray(videos["h264"].read_bytes())
    half = tmp_path / "half.mp4"
    half.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"half\.mp4"):
        [VideoReader(half).read(frame / FPS) for frame in range(FRAMES)]
    with pytest.raises(VideoError, match=r"frames are 32 x 48 .* expected 64 x 48"):
        VideoReader(videos["h264"], size=(64, 48))


def test_bad_frames_and_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="expected one of libsvtav1, h264"):
        VideoWriter(tmp_path / "x.mp4", FPS, 32, 32, "mpeg2")
    writer = VideoWriter(tmp_path / "x.mp4", FPS, 32, 32, "h264")
    for wrong in (np.zeros((32, 32, 3), np.float32), np.zeros((64, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(32, 32, 3\), got"):
            writer.write(wrong)
    with pytest.raises(ValueError, match=r"expected uint8 \(32, 32, 3\), got list"):
        writer.write([[0]])
    writer.write(np.zeros((32, 32, 3), np.uint8))  # a refused frame leaves the video as it was
    writer.close()
    writer.close()
    assert VideoReader(tmp_path / "x.mp4").num_frames == 1
    with pytest.raises(VideoError, match="the video is closed"):
        writer.write(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("fps", "height", "width", "codec", "message"),
    [
        (FPS, 31, 33, "h264", r"h264 cannot encode 33 x 31 frames at 20 per second .* use even sizes"),
        (FPS, 2, 40_000, "h264", "h264 cannot encode 40000 x 2 frames"),
        (FPS, 40_000, 40_000, "libsvtav1", "libsvtav1 cannot encode 40000 x 40000 frames"),
        (1_000, 64, 64, "libsvtav1", "at 1000 per second .* a lower rate"),
        (FPS, 0, 32, "h264", "height: expected an integer from 1 to 65535, got 0"),
        (FPS, 32, -2, "h264", "width: expected an integer from 1 to 65535, got -2"),
        (FPS, 32.0, 32, "h264", r"height: expected an integer from 1 to 65535, got 32\.0"),
        (0, 32, 32, "h264", "fps: expected an integer from 1 to 10000, got 0"),
        (-5, 32, 32, "h264", "fps: .* got -5"),
        (12.5, 32, 32, "h264", r"fps: .* got 12\.5"),
        (float("nan"), 32, 32, "h264", "fps: .* got nan"),
        (True, 32, 32, "h264", "fps: .* got True"),
        (10**6, 32, 32, "h264", "fps: .* got 1000000"),
    ],
)
def test_what_an_encoder_does_not_take_is_refused_before_it_gets_a_frame(tmp_path, fps, height, width, codec, message):
    """With PyAV 19 a frame for an encoder that could not be opened ends the process; this test would end with it."""
    if codec == "libsvtav1" and default_codec() != codec:
        pytest.skip("this PyAV has no libsvtav1")
    with pytest.raises(ValueError, match=message):
        VideoWriter(tmp_path / "x.mp4", fps, height, width, codec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [0, 3])
def test_a_discarded_video_leaves_no_file(tmp_path, frames):
    writer = VideoWriter(tmp_path / "x.mp4", FPS, 32, 32, default_codec())
    for _ in range(frames):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.discard()
    assert not list(tmp_path.iterdir())
    with pytest.raises(VideoError, match="the video is closed"):
        writer.write(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device /dev/full")
@pytest.mark.parametrize("frames", [1, 500])
def test_a_full_disk_is_named_and_leaves_no_file(tmp_path, frames):
    path = tmp_path / "x.mp4"
    path.symlink_to("/dev/full")
    writer = VideoWriter(path, FPS, 64, 64, "h264")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # does not compress

    def record() -> None:
        for _ in range(frames):
            writer.write(image)
        writer.close()

    with pytest.raises(VideoError, match=r"x\.mp4: .* free space of the disk"):
        record()
    assert not list(tmp_path.iterdir())
    writer.close()


def test_information_is_what_the_file_holds(videos):
    info = video_info(videos["h264"], "h264")
    assert (info["video.height"], info["video.width"], info["video.fps"]) == (32, 48, FPS)
    assert (info["video.codec"], info["video.pix_fmt"], info["video.g"]) == ("h264", "yuv420p", 2)
    assert info["has_audio"] is False
