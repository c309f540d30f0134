"""Video files by PyAV: constant-rate encoding, and reading of single frames by time."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from syvla.processing.lfs_pointers import is_lfs_pointer, reading_problem

# Settings of LeRobot 0.6 (`VideoEncoderConfig`): a key frame every second frame makes random access cheap.
CODEC_OPTIONS: dict[str, dict[str, str]] = {
    "libsvtav1": {"g": "2", "crf": "30", "preset": "12", "svtav1-params": "fast-decode=0"},
    "h264": {"g": "2", "crf": "23"},
}
CODEC_NAMES = {"libsvtav1": "av1", "h264": "h264"}  # as info.json calls what each encoder makes
PIXEL_FORMAT = "yuv420p"


class VideoError(ValueError):
    """A video that cannot be read or has no frame at the requested time; the message names the file."""


class TooManyOpenFilesError(VideoError):
    """A video that cannot be opened because the process holds as many files as it may; nothing is wrong with the video."""


class NotFetchedError(VideoError):
    """A video whose contents were not fetched: a Git LFS pointer lies in its place."""


@cache
def default_codec() -> str:
    """`libsvtav1` (LeRobot's default) where this PyAV has it, else `h264`."""
    for codec in CODEC_OPTIONS:
        if _has_encoder(codec):
            return codec
    raise RuntimeError(f"PyAV has none of the encoders {', '.join(CODEC_OPTIONS)}; store images in parquet instead")


class VideoWriter:
    """Encodes frames to an mp4 with a constant frame rate; frame k is shown at k / fps.

    Args:
        path: File to write; it is complete only after `close()`.
        fps: Frames per second, an integer.
        height: Of each frame, pixels.
        width: Of each frame, pixels.
        codec: A key of `CODEC_OPTIONS`.

    Raises:
        ValueError: An argument is of another type or out of range.
        VideoError: The encoder does not take this size or rate; no file is left behind.
    """

    def __init__(self, path: Path | str, fps: int, height: int, width: int, codec: str):
        if codec not in CODEC_OPTIONS:
            raise ValueError(f"codec: expected one of {', '.join(CODEC_OPTIONS)}, got {codec!r}")
        if not _has_encoder(codec):
            raise VideoError(f"codec: this PyAV ({av.__version__}) has no encoder {codec}; use {default_codec()}")
        fps = _whole_number("fps", fps, 10_000)  # the largest rate that meta/info.json may state
        height, width = (_whole_number(name, n, 65_535) for name, n in (("height", height), ("width", width)))
        if codec == "libsvtav1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only: it else prints two dozen lines per file
        self.path, self.shape = Path(path), (height, width, 3)
        self.num_frames = 0
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        stream: Any = self._container.add_stream(codec, rate=fps, options=CODEC_OPTIONS[codec])
        stream.height, stream.width, stream.pix_fmt = height, width, PIXEL_FORMAT
        self._stream: Any = stream
        self._reformatter = VideoReformatter()
        # A frame sent to an encoder that could not be opened ends the process in native code, so it is opened first.
        try:
            with kept_priorities():
                stream.codec_context.open()
        except (av.FFmpegError, ValueError) as error:
            self.discard()
            raise VideoError(
                f"{self.path}: {codec} cannot encode {width} x {height} frames at {fps} per second ({error});"
                " use even sizes and a lower rate, or store images in parquet (use_videos=False)"
            ) from error

    def write(self, image: np.ndarray) -> None:
        """Adds one frame, uint8 (height, width, 3) RGB.

        Raises:
            ValueError: The frame has another shape or dtype; the video stays as it was.
            VideoError: The writer is closed, or the frame cannot be written; the file is then gone.
        """
        if not isinstance(image, np.ndarray) or image.shape != self.shape or image.dtype != np.uint8:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"{self.path}: expected uint8 {self.shape}, got {got}")
        if self._stream is None:
            raise VideoError(f"{self.path}: the video is closed; open a new VideoWriter for further frames")
        frame = _reformat(
            self._reformatter, av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24"), PIXEL_FORMAT
        )
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise VideoError(
                f"{self.path}: frame {self.num_frames} cannot be written ({error}); check the free space of the disk and"
                " record the episode again"
            ) from error
        self.num_frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds and completes the file.

        Raises:
            VideoError: The file cannot be completed.
        """
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            if self.num_frames:
                self._container.mux(stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise VideoError(
                f"{self.path}: the video cannot be completed ({error}); check the free space of the disk and record the"
                " episode again"
            ) from error

    def discard(self) -> None:
        """Closes the writer and deletes its file."""
        stream, self._stream = self._stream, None
        with suppress(av.FFmpegError, OSError):  # a full disk, say: what it could not write is deleted anyway
            if stream is not None and self.num_frames:
                stream.encode(None)  # SVT-AV1 complains of an encoder that is closed before its end
            self._container.close()
        self.path.unlink(missing_ok=True)


@contextmanager
def kept_priorities() -> Iterator[None]:
    """What is opened within it leaves the scheduling of the calling thread and of its own new threads as the caller's is.

    Where the process may, as root in most containers, SVT-AV1 gives the highest real-time priority to its threads and to the
    thread that opened it, and never takes it back. A process that has recorded a video would hold up every other one.
    """
    if not hasattr(os, "sched_setscheduler"):  # Linux has it
        yield
        return
    before = _scheduling()
    policy, priority = before[threading.get_native_id()]
    try:
        yield
    finally:
        for thread, now in _scheduling().items():
            wanted = before.get(thread, (policy, priority))
            if now != wanted:
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setscheduler(thread, wanted[0], os.sched_param(wanted[1]))


def _scheduling() -> dict[int, tuple[int, int]]:
    """Policy and real-time priority of each thread of this process."""
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):
            found[thread] = os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority
    return found


class VideoReader:
    """Single frames of one video by time: seeks to a key frame where needed and decodes forward.

    Frames asked for in order are decoded in order, without seeking.

    Args:
        path: Video file.
        size: Expected (height, width); None accepts any.

    Raises:
        VideoError: The file cannot be opened, has no video, or another size.
    """

    def __init__(self, path: Path | str, size: tuple[int, int] | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"{self.path}: the video file is missing; download or record it again")
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise _reading_error(self.path, error) from error
        try:
            if not self._container.streams.video:
                raise VideoError(f"{self.path}: holds no video stream; download or record it again")
            stream: Any = self._container.streams.video[0]
            if size is not None and (stream.height, stream.width) != tuple(size):
                raise VideoError(
                    f"{self.path}: frames are {stream.height} x {stream.width} (height x width), expected"
                    f" {size[0]} x {size[1]} as in meta/info.json; correct the feature's shape or replace the file"
                )
        except VideoError:
            self._container.close()
            raise
        stream.codec_context.thread_count = 1  # parallelism comes from data-loader workers
        self._stream = stream
        self._reformatter = VideoReformatter()
        self._frames: Iterator[Any] | None = None
        self._current: Any = None

    @property
    def num_frames(self) -> int:
        """Number of frames as the file's index states it, or counted packet by packet where it has none."""
        if self._stream.frames:
            return int(self._stream.frames)
        try:
            self._restart(0)
            return sum(packet.size > 0 for packet in self._container.demux(self._stream))
        except av.FFmpegError as error:
            raise _reading_error(self.path, error) from error
        finally:
            self._frames = self._current = None

    def read(self, time: float, tolerance: float = 1e-4) -> np.ndarray:
        """The frame shown at a time.

        Args:
            time: Seconds from the start of the file.
            tolerance: Largest distance in seconds between `time` and the frame's own time.

        Returns:
            uint8 (height, width, 3) RGB.

        Raises:
            VideoError: No frame within the tolerance, or undecodable data.
        """
        try:
            frame = self._find(time, tolerance)
            self._current = frame
            if frame is None or abs(frame.time - time) > tolerance:
                found = "the video holds none" if frame is None else f"the nearest one found is at {frame.time:.6f} s"
                raise VideoError(
                    f"{self.path}: no frame at {time:.6f} s (tolerance {tolerance} s), {found}; the video does not"
                    " match the dataset's timestamps, or tolerance_s is too small for its clock"
                )
            return self._to_rgb(frame)
        except (av.FFmpegError, OSError) as error:
            self._frames = self._current = None
            raise _reading_error(self.path, error, time) from error

    def close(self) -> None:
        self._frames = self._current = None
        self._container.close()

    def _find(self, time: float, tolerance: float) -> Any:
        """The first frame at or after `time - tolerance`, else the last one before the end, else None."""
        current = self._current
        if current is not None and abs(current.time - time) <= tolerance:
            return current
        if current is None or time < current.time or self._frames is None or self._key_frame_between(current, time):
            self._seek(time, tolerance)
        last = None
        for frame in self._frames or ():
            if frame.time is None:
                continue
            last = frame
            if frame.time >= time - tolerance:
                return frame
        self._frames = None  # at the end: the next request must seek
        return last

    def _seek(self, time: float, tolerance: float) -> None:
        # Containers index decoding times, which run ahead of display times where frames are reordered: the key frame
        # found may lie after the wanted frame. Start ever earlier until it does not.
        for margin in (0.0, 0.5, 4.0, time):
            start = max(time - margin, 0.0)
            frames = self._restart(start)
            first = next(frames, None)
            if start == 0.0 or (first is not None and (first.time is None or first.time <= time + tolerance)):
                break
        self._frames = _chain(first, frames)

    def _restart(self, start: float) -> Iterator[Any]:
        offset = round(start / self._stream.time_base)
        self._container.seek(offset, backward=True, any_frame=False, stream=self._stream)
        self._frames, self._current = None, None
        frames: Iterator[Any] = self._container.decode(self._stream)
        return frames

    def _to_rgb(self, frame: Any) -> np.ndarray:
        image: np.ndarray = _reformat(self._reformatter, frame, "rgb24").to_ndarray()
        return image

    def _key_frame_between(self, current: Any, time: float) -> bool:
        """Whether seeking would skip frames: the key frame before `time` lies after the next frame to be decoded."""
        entries: Any = getattr(self._stream, "index_entries", ())  # not before PyAV 16
        if not len(entries):
            far: bool = time - current.time > 1.0
            return far
        position = entries.search_timestamp(round(time / self._stream.time_base))
        between: bool = position >= 0 and entries[position].timestamp > current.pts + (current.duration or 0)
        return between


def _reformat(reformatter: VideoReformatter, frame: Any, pixel_format: str) -> Any:
    # One conversion context for all frames, and no threads for it: starting threads costs far more than a small frame.
    try:
        return reformatter.reformat(frame, format=pixel_format, threads=1)
    except TypeError:  # before PyAV 16 there is no `threads`
        return reformatter.reformat(frame, format=pixel_format)


def open_file_limit() -> int | None:
    """How many files this process may hold open; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else int(limit)


def video_info(path: Path, codec: str) -> dict[str, Any]:
    """What LeRobot keeps in `features[key]["info"]` about a video key: its stream and its encoder settings."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        info = {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": CODEC_NAMES[codec],
            "video.pix_fmt": stream.pix_fmt,
            "video.fps": stream.base_rate.numerator // stream.base_rate.denominator,  # PyAV 19's rational has no int()
            "video.channels": 3,
            "has_audio": bool(container.streams.audio),
        }
    options = CODEC_OPTIONS[codec]
    settings: dict[str, Any] = {"video.g": int(options["g"]), "video.crf": int(options["crf"]), "video.fast_decode": 0}
    if "preset" in options:
        settings["video.preset"] = int(options["preset"])
    return {**info, **settings, "video.video_backend": "pyav", "video.extra_options": {}, "is_depth_map": False}


def _has_encoder(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "w")
    except (av.FFmpegError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        return False
    return True


def _whole_number(name: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= largest:
        raise ValueError(f"{name}: expected an integer from 1 to {largest}, got {value!r}")
    return int(value)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
    yield from rest


def _reading_error(path: Path, error: Exception, time: float | None = None) -> VideoError:
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        own = f"this process may hold {open_file_limit()} (RLIMIT_NOFILE)"
        whose = own if number == errno.EMFILE else "the system has no more"
        return TooManyOpenFilesError(
            f"{path}: too many open files: {whose}; raise the limit with `ulimit -n 65536`, or use fewer data-loader workers"
        )
    where = "" if time is None else f" at {time:.6f} s"
    if is_lfs_pointer(path):
        return NotFetchedError(f"{path}: {reading_problem(path, '')}")
    return VideoError(
        f"{path}: the video cannot be read{where} ({error}); the file is damaged, download or record it again"
    )
