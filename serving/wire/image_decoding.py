"""Images of requests, encoded or raw. The header is checked before any pixel is decoded. Also resizing with padding."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
MAX_PIXELS = 4096 * 4096
"""Most pixels of an image; 48 MiB once decoded. Ours: beyond what robots' cameras deliver."""

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter one; Qwen2.5-VL's image processor accepts no larger one."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A JPEG or PNG file as uint8 (H, W, 3).

    Raises:
        ValueError: Another format, damaged or cut data, or more than `max_pixels` by its header.
    """
    from syvla.processing.image_modes import to_rgb  # its package imports torch, which robots' clients do without

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"expected the bytes of a JPEG or PNG file, got {len(data)} other bytes") from None
    except Exception as error:  # whatever a damaged header makes Pillow raise, its own bomb error included
        raise ValueError(f"expected a JPEG or PNG file, got one with an unreadable header ({error})") from None
    if image.mode not in _MODES:  # Pillow would cut 16 bits at 255 and call it a picture
        raise ValueError(f"expected an image of 8 bits per channel, got one of mode {image.mode!r}; send a color image")
    _check_size(*image.size, max_pixels)
    try:
        return np.asarray(to_rgb(image))
    except Exception as error:
        raise ValueError(f"expected a whole JPEG or PNG file, got a damaged or truncated one ({error})") from None


def rgb_image(value: Any, layouts: tuple[str, ...], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image of a request as uint8 (H, W, 3).

    Args:
        value: Array uint8, or float in [0, 1], in one of the layouts; or the bytes of a JPEG or PNG file.
        layouts: Accepted orders of axes, "hwc" or "chw"; the first that fits is taken.
        max_pixels: Most pixels.

    Raises:
        ValueError: Says what was expected and what came.
    """
    if isinstance(value, bytes):
        return decode_image(value, max_pixels)
    wanted = " or ".join({"hwc": "(H, W, 3)", "chw": "(3, H, W)"}[layout] for layout in layouts)
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"expected an array {wanted} uint8 or the bytes of a JPEG or PNG file, got {type(value).__name__}"
        )
    kind = f"{value.shape} {value.dtype}"
    if value.ndim != 3 or 0 in value.shape:
        raise ValueError(f"expected {wanted} uint8 or float in [0, 1], got {kind}")
    if "hwc" in layouts and value.shape[2] == 3:
        image = value
    elif "chw" in layouts and value.shape[0] == 3:
        image = value.transpose(1, 2, 0)
    else:
        raise ValueError(f"expected {wanted} uint8 or float in [0, 1], got {kind}")
    _check_size(image.shape[1], image.shape[0], max_pixels)
    if value.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if value.dtype.kind != "f":
        raise ValueError(f"expected {wanted} uint8 or float in [0, 1], got {kind}")
    if not (image.min() >= 0 and image.max() <= 1):  # false for NaN
        raise ValueError(f"expected float values in [0, 1], got {image.min():g} to {image.max():g}; send uint8 0..255")
    return np.rint(np.ascontiguousarray(image, dtype=np.float32) * 255).astype(np.uint8)


def rgb_images(
    found: Mapping[str, tuple[str, Any]], layouts: tuple[str, ...], max_pixels: int, size: int | None
) -> dict[str, np.ndarray]:
    """The images of a request, view to uint8 (H, W, 3).

    Args:
        found: View to (the key under which it came, for messages; its value).
        layouts: See `rgb_image`.
        max_pixels: Most pixels of one image.
        size: Side of a square that every image is fitted into, see `resize_with_pad`; None leaves the sizes alone.

    Raises:
        ValueError: See `rgb_image`; names the key.
    """
    images = {}
    for view, (key, value) in found.items():
        try:
            image = rgb_image(value, layouts, max_pixels)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        images[view] = resize_with_pad(image, size, size) if size else image
    return images


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"expected an image of at most {max_pixels} pixels, got {width} x {height}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"expected sides of which one is at most {MAX_ASPECT} times the other, got {width} x {height}")


def resize_with_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales uint8 (H, W, 3) to fit, bilinear, and fills the rest with black, as openpi's clients do.

    The picture is centered. If the number of black rows or columns is odd, the larger half comes after the picture.
    """
    if image.shape[:2] == (height, width):
        return image
    ratio = max(image.shape[1] / width, image.shape[0] / height)
    rows, columns = max(1, int(image.shape[0] / ratio)), max(1, int(image.shape[1] / ratio))
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[top : top + rows, left : left + columns] = resized
    return canvas
