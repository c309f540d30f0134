"""Frames of foreign files to uint8 (H, W, 3) RGB: sizes are checked before anything is decoded or allocated."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from syvla.processing.image_inputs import to_rgb

from .source import SourceError

MAX_PIXELS = 4096 * 4096
MAX_ENCODED_BYTES = 64 * 2**20
_FORMATS = ("JPEG", "PNG", "WEBP")


def encoded_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded picture, from its header.

    Raises:
        SourceError: No JPEG, PNG or WebP, or too large.
    """
    return _open(data)[1]


def decode_image(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP; zeros behind its end, which recorders pad with, are ignored.

    Raises:
        SourceError: It is none of these, damaged or too large.
    """
    image, _ = _open(data)
    try:
        return np.array(to_rgb(image))
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"the picture is damaged ({error})") from error


def check_shape(shape: tuple[int, ...]) -> None:
    """SourceError unless `shape` is (H, W, 3) within the limit."""
    if len(shape) != 3 or shape[2] != 3 or not 0 < shape[0] * shape[1] <= MAX_PIXELS:
        raise SourceError(f"expected frames (H, W, 3) of at most {MAX_PIXELS} pixels, got {shape}")


def _open(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    if len(data) > MAX_ENCODED_BYTES:
        raise SourceError(f"the picture takes {len(data)} bytes, expected at most {MAX_ENCODED_BYTES}")
    try:
        image = Image.open(io.BytesIO(data.rstrip(b"\0")), formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = "nothing" if not data.strip(b"\0") else f"{len(data)} bytes that are none ({error})"
        raise SourceError(f"expected a JPEG, PNG or WebP picture, got {what}") from error
    if not 0 < image.size[0] * image.size[1] <= MAX_PIXELS:
        raise SourceError(f"the picture has {image.size[1]} x {image.size[0]} pixels, expected at most {MAX_PIXELS}")
    return image, (image.size[1], image.size[0])
