"""Recordings of episodes: an mp4 with all cameras side by side and the thought below, and a contact sheet as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _PAPER, _MUTED = (240, 240, 240), (24, 26, 30), (150, 155, 165)
_GOOD, _BAD = (80, 200, 120), (230, 90, 80)
_MARGIN = 8  # pixels around the pictures and captions
_TEXT = 14  # font size in pixels
_LINE = 18  # line height in pixels


class EpisodeVideo:
    """Collects one episode's frames.

    Args:
        instruction: Task instruction, shown in every frame.
        control_hz: Control steps per second; the video plays in real time.
        view_height: Pictures lower than this many pixels are enlarged by a whole factor, without smoothing.

    Raises:
        ValueError: `control_hz` is not a number from 0.01 to 10000.
    """

    def __init__(self, instruction: str, control_hz: float, view_height: int = 128) -> None:
        if (
            isinstance(control_hz, bool)
            or not isinstance(control_hz, int | float | np.number)
            or not 0.01 <= control_hz <= 10_000
        ):
            raise ValueError(f"control_hz: expected control steps per second from 0.01 to 10000, got {control_hz!r}")
        self.instruction = instruction
        self.control_hz = control_hz
        self.view_height = view_height
        self.frames: list[np.ndarray] = []
        self.thoughts: list[str] = []
        self.success: bool | None = None

    def add(self, images: Mapping[str, np.ndarray], thought: str | None = None) -> None:
        """Adds one control step.

        Args:
            images: Camera name to uint8 (H, W, 3), in the order to be shown.
            thought: What the policy was thinking; None repeats the last one.

        Raises:
            ValueError: No image, an image of another form, or other sizes than in the first step.
        """
        if thought is None:
            thought = self.thoughts[-1] if self.thoughts else ""
        frame = self._side_by_side(images)
        if self.frames and frame.shape != self.frames[0].shape:
            raise ValueError(
                f"images: cameras {', '.join(images)} together make {frame.shape[1]} x {frame.shape[0]} pixels, but"
                f" {self.frames[0].shape[1]} x {self.frames[0].shape[0]} in the first step; pass the same cameras in the"
                " same sizes at each step"
            )
        self.frames.append(frame)
        self.thoughts.append(thought)

    def finish(self, success: bool) -> None:
        """Says how the episode ended; the last frame then carries it."""
        self.success = success

    def write_mp4(self, path: Path, hold_seconds: float = 1.0) -> None:
        """Writes H.264 in an mp4, with the last frame held for `hold_seconds`.

        Raises:
            ValueError: No frame was added, or the frames are too large to be encoded.
        """
        import av

        self._require_frames()
        held = max(1, round(hold_seconds * self.control_hz))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(float(self.control_hz)).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "20", "preset": "veryfast"}
            stream.width, stream.height = self._captioned(0).size
            # A frame sent to an encoder that could not be opened ends the process in native code, so it is opened first.
            try:
                stream.codec_context.open()
            except (av.FFmpegError, ValueError) as error:
                Path(path).unlink(missing_ok=True)
                raise ValueError(
                    f"{path}: frames of {stream.width} x {stream.height} pixels cannot be encoded ({error}); lower"
                    " view_height or film fewer or smaller cameras"
                ) from error
            for index in range(len(self.frames)):
                picture = self._captioned(index)
                for _ in range(held if index == len(self.frames) - 1 else 1):
                    container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())

    def write_contact_sheet(self, path: Path, pictures: int = 8, columns: int = 2) -> None:
        """Writes a PNG of `pictures` moments, evenly spread with first and last included, read left to right.

        Raises:
            ValueError: If no frame was added.
        """
        self._require_frames()
        moments = np.unique(np.linspace(0, len(self.frames) - 1, pictures).round().astype(int))
        tiles = [self._captioned(int(index)) for index in moments]
        columns = min(columns, len(tiles))
        width, height = tiles[0].size
        sheet = Image.new("RGB", (width * columns, height * -(-len(tiles) // columns)), _PAPER)
        for place, tile in enumerate(tiles):
            sheet.paste(tile, (place % columns * width, place // columns * height))
        sheet.save(path)

    def _require_frames(self) -> None:
        if not self.frames:
            raise ValueError("video: no frame was added; call add() at each control step before writing")

    def _side_by_side(self, images: Mapping[str, np.ndarray]) -> np.ndarray:
        if not images:
            raise ValueError("images: expected at least one camera, got none; pass its picture at each step")
        views = []
        for camera, image in images.items():
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"camera {camera}: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
            factor = max(1, self.view_height // image.shape[0])
            views.append(image.repeat(factor, axis=0).repeat(factor, axis=1))
        height = max(view.shape[0] for view in views)
        width = sum(view.shape[1] + _MARGIN for view in views) - _MARGIN
        frame = np.full((height, width, 3), _PAPER, np.uint8)
        left = 0
        for view in views:
            frame[: view.shape[0], left : left + view.shape[1]] = view
            left += view.shape[1] + _MARGIN
        return frame

    def _captioned(self, index: int) -> Image.Image:
        """The frame with instruction, thought and time below it; both sides even, as yuv420p needs."""
        frame = self.frames[index]
        width = frame.shape[1] + 2 * _MARGIN
        height = frame.shape[0] + 3 * _LINE + 3 * _MARGIN
        picture = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
        picture.paste(Image.fromarray(frame), (_MARGIN, _MARGIN))
        draw = ImageDraw.Draw(picture)
        font = ImageFont.load_default(size=_TEXT)
        top = frame.shape[0] + 2 * _MARGIN
        room = picture.width - 2 * _MARGIN
        draw.text((_MARGIN, top), _fitting(draw, self.instruction, font, room), _INK, font)
        thought = f"thought: {self.thoughts[index]}" if self.thoughts[index] else ""
        draw.text((_MARGIN, top + _LINE), _fitting(draw, thought, font, room), _INK, font)
        clock, color = f"{index / self.control_hz:.1f} s", _MUTED
        if self.success is not None and index == len(self.frames) - 1:
            clock, color = clock + ("  success" if self.success else "  failure"), _GOOD if self.success else _BAD
        draw.text((_MARGIN, top + 2 * _LINE), clock, color, font)
        return picture


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, room: int) -> str:
    """The first line of `text`, cut to `room` pixels."""
    line = " ".join(text.split())
    if draw.textlength(line, font) <= room:
        return line
    while line and draw.textlength(line + "...", font) > room:
        line = line[:-1]
    return line + "..."
