"""Pictures of any kind to the RGB that a person sees. Ships with checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112  # of EXIF
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def to_rgb(image: Any) -> Any:
    """A PIL image as it is shown: upright, 8 bits per channel, RGB; of an animation the current frame.

    - The orientation of EXIF is applied: annotators saw the picture upright, so that is where their points lie.
    - Gray pictures of 16 bits are scaled to 8; Pillow would cut every value above 255.
    - What is transparent becomes white, as on the pages that such pictures were drawn for (and as Qwen's own
      preprocessing has it). Dropping the transparency leaves what the file holds there, mostly black, on which dark
      text and lines vanish.

    Raises:
        ValueError: Values whose range is not known (floating point, 32 bits), or a mode that Pillow cannot convert.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose range is not known; store 8 bits per channel")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_sixteen_bits(image: Any) -> Any:
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError(f"pixels are whole numbers from {values.min()} to {values.max()}; expected at most 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
