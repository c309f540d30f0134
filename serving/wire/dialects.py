"""Observation dialects: under which keys, and in which form, a robot's client sends what the model needs. They are data.

`dialects/*.yaml` hold the dialects of LeRobot and of openpi's LIBERO, DROID and ALOHA clients. A further file of the same
form makes another dialect, see `dialect_files`. Values stay raw: the processor normalizes them, exactly as in training. An
encoded image's header is checked before any pixel is decoded.

| field | meaning |
|---|---|
| `images` | view: key; a list of keys leads through nested maps |
| `camera_key` | pattern of further camera names, see `Dialect.for_views` |
| `optional` | views that may be missing |
| `ignored` | keys that clients send and the model does not need |
| `image_layout` | accepted orders of axes, `hwc` and `chw`; the first one is written |
| `image_size` | side to which images are resized with padding, or null |
| `state` | parts in order, each with its `key` and, if it is fixed, its number of dimensions `dim` |
| `prompt` | keys of the instruction; the first one is written |
| `sends` | views that the dialect's own client sends, where it knows more; evaluation sends these |
| `replan_steps` | actions that the dialect's own client executes of each chunk; evaluation's default |

Imports no torch, so that light clients can use it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

Key = tuple[str, ...]
MAX_PROMPT_LENGTH = 4096
"""Most characters of an instruction. Ours: far beyond any instruction, yet cheap to tokenize."""

FORMATS = ("JPEG", "PNG")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
MAX_PIXELS = 4096 * 4096
"""Most pixels of an image; 48 MiB once decoded. Ours: beyond what robots' cameras deliver."""

MAX_ASPECT = 200
"""Largest ratio of the longer side to the shorter one; Qwen2.5-VL's image processor accepts no larger one."""

MAX_MAGNITUDE = 1e12
"""Largest size of a number in a state, a command or a chunk. Ours: beyond every unit that robots count in, and far below what
overflows within the model, where one such number would make all actions NaN."""


@dataclass(frozen=True)
class StatePart:
    """A piece of the state vector: its key and its number of dimensions; None if the number depends on the robot."""

    key: Key
    dim: int | None = None


@dataclass(frozen=True)
class Dialect:
    """Translates requests to observations and back. See the module for the fields.

    Attributes:
        name: Name of the dialect, for messages.
        images: View to the keys under which the image may come; `to_request` writes the first one.
        max_pixels: Most pixels of one image.
    """

    name: str
    images: Mapping[str, tuple[Key, ...]]
    state: tuple[StatePart, ...]
    prompt: tuple[Key, ...] = (("prompt",),)
    optional: frozenset[str] = frozenset()
    ignored: frozenset[Key] = frozenset()
    image_layout: tuple[str, ...] = ("hwc",)
    image_size: int | None = None
    camera_key: str | None = None
    sends: tuple[str, ...] | None = None
    replan_steps: int | None = None
    description: str = ""
    max_pixels: int = field(default=MAX_PIXELS, compare=False)

    def for_views(self, views: Sequence[str], cameras: Mapping[str, str] | None = None) -> Dialect:
        """The dialect for a model's views and a robot's cameras.

        Args:
            views: The model's views. A dialect with `camera_key` takes exactly these.
            cameras: View to the camera's own name, accepted beside the view's name; these views are then required. A name
                that is a whole key (`observation.images.head`) is used unchanged.

        Raises:
            ValueError: If the dialect has views that the model lacks, or cameras are given to a dialect with fixed keys.
        """
        if self.camera_key is None:
            if cameras:
                raise ValueError(
                    f"cameras: dialect {self.name!r} has fixed keys; write a dialect file for other cameras"
                )
            missing = sorted(set(self.images) - set(views) - self.optional)
            if missing:
                raise ValueError(
                    f"dialect {self.name!r}: expected a model with views {missing}, got one with {list(views)}"
                )
            return replace(self, images={view: keys for view, keys in self.images.items() if view in views})
        unknown = sorted(set(cameras or {}) - set(views))
        if unknown:
            raise ValueError(f"cameras: expected views out of {list(views)}, got {unknown}")
        prefix = self.camera_key.partition("{}")[0]
        images = {}
        for view in views:
            keys: list[Key] = [(self.camera_key.format(view),)]
            if cameras and view in cameras:
                camera = cameras[view]
                keys.insert(0, (camera if camera.startswith(prefix) else self.camera_key.format(camera),))
            images[view] = tuple(dict.fromkeys(keys))
        return replace(self, images=images, optional=frozenset(views) - frozenset(cameras or ()))

    def for_state(self, dim: int) -> Dialect:
        """The dialect for a robot whose state has `dim` dimensions.

        Raises:
            ValueError: If the dialect's parts have another number of dimensions.
        """
        fixed, open_parts = sum(part.dim or 0 for part in self.state), [p for p in self.state if p.dim is None]
        if len(open_parts) > 1 or (dim - fixed < 1 if open_parts else dim != fixed):
            raise ValueError(f"dialect {self.name!r}: has a state of {fixed} dimensions, the robot one of {dim}")
        return replace(self, state=tuple(replace(part, dim=part.dim or dim - fixed) for part in self.state))

    def recognized(self, request: Mapping[str, Any]) -> int:
        """How many of the request's keys the dialect knows, minus the number of keys that it does not know."""
        known = self._known_keys
        try:
            present = [key for key, _ in _entries(request, self._containers)]
        except ValueError:
            return -len(request)
        return sum(1 if key in known else -1 for key in present)

    def describe(self) -> dict[str, Any]:
        """Plain data for the metadata: keys, order of axes, size of images, dimensions of the state's parts."""
        return {
            "images": {view: [_text(key) for key in keys] for view, keys in self.images.items()},
            "optional": sorted(self.optional),
            "image_layout": list(self.image_layout),
            "image_size": self.image_size,
            "state": {_text(part.key): part.dim for part in self.state},
            "prompt": [_text(key) for key in self.prompt],
        }

    def read(self, request: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
        """The observation in a request.

        Args:
            request: Keys as the client sent them, without the server's own options.

        Returns:
            (view to uint8 (H, W, 3); state, float32 (D,), physical units; instruction).

        Raises:
            ValueError: Missing, unknown or ill-formed entries; names the key, what was expected and what came.
        """
        present = dict(_entries(request, self._containers))
        unknown = sorted(_text(key) for key in set(present) - self._known_keys)
        if unknown:
            expected = ", ".join(self._expected_keys())
            raise ValueError(f"{unknown[0]:.100}: unknown key; dialect {self.name!r} expects {expected}")
        found = self._present_images(present)
        state = np.concatenate([self._read_state(part, present) for part in self.state])
        instruction = self._read_prompt(present)
        return rgb_images(found, self.image_layout, self.max_pixels, self.image_size), state, instruction

    def to_request(self, views: Mapping[str, np.ndarray], state: np.ndarray, prompt: str) -> dict[str, Any]:
        """The request with which a client of this dialect sends an observation; the inverse of `read`.

        Args:
            views: View to uint8 (H, W, 3). Views that the dialect has no key for are left out.
            state: float32 (D,), physical units.
            prompt: Instruction.

        Raises:
            ValueError: A required view is missing, or the state does not divide into the dialect's parts.
        """
        request: dict[str, Any] = {}
        for view, keys in self.images.items():
            if view in views:
                image = rgb_image(views[view], ("hwc",))
                if self.image_size:
                    image = resize_with_pad(image, self.image_size, self.image_size)
                _put(request, keys[0], image if self.image_layout[0] == "hwc" else image.transpose(2, 0, 1).copy())
            elif view not in self.optional:
                raise ValueError(f"views.{view}: dialect {self.name!r} needs this view, got {sorted(views)}")
        for part, piece in zip(self.state, self._split_state(np.asarray(state, dtype=np.float32)), strict=True):
            _put(request, part.key, piece)
        _put(request, self.prompt[0], prompt)
        return request

    def _split_state(self, state: np.ndarray) -> list[np.ndarray]:
        fixed = sum(part.dim or 0 for part in self.state)
        rest = len(state) - fixed if state.ndim == 1 else -1  # for the one part of unknown length
        sizes = [part.dim or rest for part in self.state]
        if min(sizes) < 1 or sum(sizes) != len(state):
            parts = {_text(part.key): part.dim or "any" for part in self.state}
            raise ValueError(f"state: dialect {self.name!r} expects dimensions {parts}, got shape {state.shape}")
        return np.split(state, np.cumsum(sizes)[:-1])

    # ------------------------------------------------------------------ parts of a request

    def _present_images(self, present: dict[Key, Any]) -> dict[str, tuple[str, Any]]:
        """View to (its key as text, what came under it)."""
        images = {}
        for view, keys in self.images.items():
            found = [key for key in keys if key in present]
            if len(found) > 1:
                raise ValueError(f"{_text(found[1])}: the {view} view came twice, as {_text(found[0])} as well")
            if found:
                images[view] = (_text(found[0]), present[found[0]])
            elif view not in self.optional:
                raise ValueError(f"{_text(keys[0])}: missing (the {view} view); got {_listed(present)}")
        if not images:
            expected = ", ".join(_text(keys[0]) for keys in self.images.values())
            raise ValueError(f"images: expected at least one of {expected}; got {_listed(present)}")
        return images

    def _read_state(self, part: StatePart, present: dict[Key, Any]) -> np.ndarray:
        name, wanted = _text(part.key), f"({part.dim or 'D'},) numbers"
        if part.key not in present:
            raise ValueError(f"{name}: missing; expected {wanted}, got {_listed(present)}")
        value = present[part.key]
        if isinstance(value, list):
            if not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in value):
                raise ValueError(f"{name}: expected {wanted}, got a list of other things")
            value = np.array(value)  # of dtype object for integers beyond 64 bits, which is refused below
        if isinstance(value, bool) or not isinstance(value, int | float | np.ndarray | np.generic):
            raise ValueError(f"{name}: expected {wanted}, got {type(value).__name__}")
        array = np.atleast_1d(np.asarray(value))
        if array.dtype.kind not in "iuf" or array.ndim != 1 or len(array) != (part.dim or len(array)):
            raise ValueError(f"{name}: expected {wanted}, got shape {np.shape(value)} {array.dtype}")
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float32)
        if not np.isfinite(numbers).all():
            where = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(f"{name}: expected finite numbers, got {array[where]} in dimension {where}")
        require_magnitude(name, array)
        return numbers

    def _read_prompt(self, present: dict[Key, Any]) -> str:
        found = [key for key in self.prompt if key in present]
        name = _text(found[0] if found else self.prompt[0])
        if not found:
            raise ValueError(f"{name}: missing; expected the instruction as text, got {_listed(present)}")
        # Types first: comparing an array with a number of any size can fail in numpy.
        for key in found:
            if not isinstance(present[key], str):
                raise ValueError(f"{_text(key)}: expected the instruction as text, got {type(present[key]).__name__}")
        value: str = present[found[0]]
        if len(found) > 1 and present[found[1]] != value:
            raise ValueError(f"{_text(found[1])}: the instruction came twice and differs from {name}")
        if not value.strip():
            raise ValueError(f"{name}: expected an instruction, got an empty text")
        if len(value) > MAX_PROMPT_LENGTH:
            raise ValueError(f"{name}: expected at most {MAX_PROMPT_LENGTH} characters, got {len(value)}")
        return value

    @cached_property
    def _known_keys(self) -> set[Key]:
        keys = {key for keys in self.images.values() for key in keys}
        return keys | set(self.prompt) | self.ignored | {part.key for part in self.state}

    @cached_property
    def _containers(self) -> set[Key]:
        """Keys of the nested maps that lie on the way to an entry."""
        return {key[:depth] for key in self._known_keys for depth in range(1, len(key))}

    def _expected_keys(self) -> list[str]:
        keys = [_text(keys[0]) for keys in self.images.values()]
        return [*keys, *(_text(part.key) for part in self.state), _text(self.prompt[0])]


def require_magnitude(name: str, numbers: np.ndarray) -> None:
    """Raises ValueError for numbers, as they came, beyond `MAX_MAGNITUDE`."""
    largest = float(np.abs(numbers.astype(np.float64)).max(initial=0.0))
    if largest > MAX_MAGNITUDE:
        raise ValueError(f"{name}: expected numbers of at most {MAX_MAGNITUDE:g} in size, got one of {largest:g}")


def best_dialect(dialects: Sequence[Dialect], request: Mapping[str, Any]) -> Dialect:
    """The dialect that knows most of the request's keys; the earlier one of two that know as many."""
    return max(dialects, key=lambda dialect: dialect.recognized(request))


def _entries(request: Mapping[str, Any], containers: set[Key], path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """(key, value) of all entries; maps on the way to an expected entry are entered, others are values."""
    for name, value in request.items():
        key = (*path, name)
        if key in containers:
            if not isinstance(value, Mapping):
                raise ValueError(f"{_text(key)}: expected a map, got {type(value).__name__}")
            yield from _entries(value, containers, key)
        else:
            yield key, value


def _put(request: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        request = request.setdefault(name, {})
    request[key[-1]] = value


def _text(key: Key) -> str:
    return ".".join(key)


def _listed(present: Mapping[Key, Any]) -> str:
    names = [_text(key)[:60] for key in present]
    return f"{names[:12]}{' and more' if len(names) > 12 else ''}" if names else "nothing"


# ---------------------------------------------------------------------- images, encoded or raw


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A JPEG or PNG file as uint8 (H, W, 3).

    Raises:
        ValueError: Another format, damaged or cut data, or more than `max_pixels` by its header.
    """
    from syvla.processing.image_inputs import to_rgb  # its package imports torch, which robots' clients do without

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
