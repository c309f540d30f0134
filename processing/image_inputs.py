"""Images of a processor's call: checked arrays of robots, and every source that a chat may name. Ships with checkpoints."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageOps

Image = Any  # PIL image or uint8 array (H, W, 3)

SOURCES = ("image", "url", "path", "base64", "image_url")  # keys under which a part of a chat may hold its image

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112  # of EXIF
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def checked_image(image: Image, name: str) -> np.ndarray:
    """uint8 (H, W, 3); anything else is an error, never guessed."""
    if hasattr(image, "convert"):  # PIL
        _require_pixels(image, name)
        return np.asarray(to_rgb(image))
    array = image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"{name}: expected a PIL image or an array (H, W, 3) uint8, got {array.shape} {array.dtype}; move channels last "
            "and scale to 0..255"
        )
    return array


def robot_views(images: Any, views: Sequence[str]) -> dict[str, np.ndarray]:
    """The images of a robot's observation in the model's order of views, uint8 (H, W, 3) each.

    Args:
        images: View -> image, where None stands for a missing view; or images in the order of `views`.
        views: The model's views.

    Raises:
        ValueError: There is no image, an unknown view, or an image of another form.
    """
    if images is None:
        raise ValueError(f"images: missing; expected a dict with views out of {views}")
    if not isinstance(images, Mapping):
        images = images if isinstance(images, (list, tuple)) else [images]
        if len(images) > len(views):
            raise ValueError(f"images: expected at most {len(views)} views {views}, got {len(images)}")
        images = dict(zip(views, images, strict=False))
    unknown = sorted(set(images) - set(views))
    if unknown:
        raise ValueError(f"images: unknown views {unknown}; this checkpoint has {views}. Map cameras to views.")
    present = {view: checked_image(images[view], f"images.{view}") for view in views if images.get(view) is not None}
    if not present:
        raise ValueError(f"images: expected at least one of the views {views}, got none")
    return present


def chat_images(images: Sequence[Image] | None) -> dict[str, np.ndarray]:
    """The images of a multi-modal item by their number, uint8 (H, W, 3) each."""
    return {str(number): checked_image(image, f"images[{number}]") for number, image in enumerate(images or [])}


def rows_of_images(images: Any) -> tuple[list[Any], list[int] | None]:
    """The images of a call in order, and how many belong to each text where the call says so by nested lists."""
    if images is None:
        return [], None
    if isinstance(images, Mapping):
        raise ValueError("images: a dict of views is a robot's observation; pass its state= (and embodiment=) as well")
    entries = list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
    nested = [entry is None or isinstance(entry, (list, tuple)) for entry in entries]
    if not any(nested):
        return entries, None
    if not all(nested):
        raise ValueError("images: expected images, or one list of images for each text; got a mixture of both")
    rows = [list(entry or ()) for entry in entries]
    return [image for row in rows for image in row], [len(row) for row in rows]


def chat_image(image: Any, name: str, keywords: Mapping[str, Any], rescales: bool) -> Any:
    """An image as the image processor takes it.

    Args:
        image: PIL image, array or tensor with its channels first or last, or where to find one: a path, an `http(s)://` or
            `file://` address, a data address or base64.
        name: What an error calls it.
        keywords: The call's keywords for the image processor.
        rescales: Whether the image processor will divide by 255.

    Raises:
        ValueError: If there is no image, or its layout or its range cannot be told.
    """
    if isinstance(image, (str, os.PathLike)):
        return _shown(_loaded(os.fspath(image), name), name, keywords)
    if hasattr(image, "convert"):
        return _shown(image, name, keywords)
    array = image if isinstance(image, (np.ndarray, torch.Tensor)) else np.asarray(image)
    shape = tuple(array.shape)
    if len(shape) != 3 or 0 in shape or 3 not in (shape[0], shape[-1]):
        raise ValueError(
            f"{name}: expected a PIL image, a path, an address, base64, or an array (H, W, 3) or (3, H, W); got "
            f"{type(image).__name__} of shape {shape}"
        )
    if shape[0] == shape[-1] == 3 and keywords.get("input_data_format") is None:
        raise ValueError(
            f"{name}: shape {shape} may have its channels first or last; pass input_data_format='channels_first' or "
            "'channels_last'"
        )
    floats = array.is_floating_point() if isinstance(array, torch.Tensor) else array.dtype.kind == "f"
    if floats and rescales and float(array.max()) <= 1:
        raise ValueError(
            f"{name}: expected values of 0..255, which are divided by 255, got floats of at most 1; pass do_rescale=False, "
            "or a uint8 image"
        )
    return array


def part_source(part: Mapping[str, Any], name: str) -> Any:
    """The image that a part of a chat holds or names; None where it only marks the place of one.

    Raises:
        ValueError: If it names more than one.
    """
    found = [key for key in SOURCES if part.get(key) is not None]
    if len(found) > 1:
        raise ValueError(f"{name}: holds an image under {' and '.join(found)}; give one of them")
    if not found:
        return None
    source = part[found[0]]
    return source.get("url") if found[0] == "image_url" and isinstance(source, Mapping) else source


def is_image_part(part: Any) -> bool:
    """Whether the chat template writes an image pad for this part."""
    if not isinstance(part, Mapping):
        return False
    return part.get("type") in ("image", "image_url") or "image" in part or "image_url" in part


def _shown(image: Any, name: str, keywords: Mapping[str, Any]) -> Any:
    """A PIL image in the RGB that a person sees, unless the call says `do_convert_rgb=False`."""
    _require_pixels(image, name)
    if keywords.get("do_convert_rgb") is False:
        return image
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _loaded(source: str, name: str) -> Any:
    shown = source if len(source) <= 80 else f"{source[:77]}..."
    try:
        image = PillowImage.open(_opened(source))
        image.load()
        return image
    except Exception as error:  # a file, a network, a decoder: whatever fails, the caller learns which image it was
        raise ValueError(
            f"{name}: no image could be read from {shown!r}; expected a path, an http(s):// or file:// address, a data "
            f"address or base64: {error}"
        ) from error


def _opened(source: str) -> Any:
    """What `PIL.Image.open` takes: a path, or the bytes that an address leads to or that the text holds."""
    if source.startswith(("http://", "https://")):
        import httpx  # which huggingface_hub brings

        response = httpx.get(source, follow_redirects=True, timeout=60)
        return io.BytesIO(response.raise_for_status().content)
    if source.startswith("file:"):
        address = urlparse(source)
        if address.netloc not in ("", "localhost"):
            raise ValueError(f"its host is {address.netloc}, not this machine")
        return url2pathname(address.path)
    if os.path.isfile(source):
        return source
    return io.BytesIO(base64.b64decode(source.split(",", 1)[1] if source.startswith("data:image/") else source))


def _require_pixels(image: Any, name: str) -> None:
    if 0 in image.size:
        raise ValueError(f"{name}: expected an image with pixels, got one of size {image.size}")


# ---------------------------------------------------------------------- pictures of any kind to RGB


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
        return PillowImage.alpha_composite(PillowImage.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_sixteen_bits(image: Any) -> Any:
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise ValueError(f"pixels are whole numbers from {values.min()} to {values.max()}; expected at most 16 bits")
    return PillowImage.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
