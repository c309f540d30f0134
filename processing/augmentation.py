"""Augmentation of robot samples in training: what light, a camera's mount, its lens or a sensor may change.

Images are augmented before the processor sees them, so the VLM and the action expert read the same pixels, and nothing of it
is in a checkpoint: inference has none. Images are never mirrored, since left and right mean something to a robot. Vision-
language samples are left as they are, since answers name places and colors.
"""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from .normalization import offset_and_scale

REFERENCE_HEIGHT = 224  # pixels; blur is given for images of this height

# Luma and the two color axes of NTSC's YIQ, in which a turn about the first axis changes the hue alone.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class AugmentationSettings:
    """How strongly samples are changed. Every field's neutral value switches its change off.

    Attributes:
        crop: Side of a random crop as a share of the image's, resized to the image's size. Independent for every view.
        rotation: Largest turn in degrees, either way, about the crop's center; corners become black. Independent for every
            view.
        brightness, contrast, saturation: A factor out of [1 - x, 1 + x]; contrast is about mid-gray, so that all views of a
            sample go through one and the same map from color to color.
        hue: Largest turn of the hue, either way, in turns of the color circle.
        blur_probability, blur: Share of views that are blurred, with a Gaussian of up to `blur` pixels (standard deviation,
            in an image 224 pixels high).
        jpeg_probability, jpeg_quality: Share of views that are compressed as JPEG, and the lowest quality, 1 to 95.
        view_dropout: Probability that a view is missing, for the VLM and the expert alike; one always stays.
        state_noise: Standard deviation of noise on the state, in normalized units (`mean_std`: 1 is the standard deviation
            of the data). Actions are not changed, nor what they are relative to.
        state_dropout: Probability that the whole state is 0 in normalized units (`mean_std`: the mean of the data).
        fixed_views: Views that are neither cropped nor turned, since they move with the gripper. None: those with "wrist" in
            their names, as in openpi.
    """

    crop: float = 1.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur_probability: float = 0.0
    blur: float = 1.5
    jpeg_probability: float = 0.0
    jpeg_quality: int = 40
    view_dropout: float = 0.0
    state_noise: float = 0.0
    state_dropout: float = 0.0
    fixed_views: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"augmentation: {name}: expected a number in [{low}, {high}], got {value!r}")
        if self.fixed_views is not None:
            if isinstance(self.fixed_views, str) or not all(isinstance(view, str) for view in self.fixed_views):
                raise ValueError(f"augmentation: fixed_views: expected a list of views, got {self.fixed_views!r}")
            object.__setattr__(self, "fixed_views", tuple(self.fixed_views))


_RANGES: dict[str, tuple[float, float]] = {
    "crop": (0.1, 1.0),
    "rotation": (0.0, 45.0),
    "brightness": (0.0, 1.0),
    "contrast": (0.0, 1.0),
    "saturation": (0.0, 1.0),
    "hue": (0.0, 0.5),
    "blur_probability": (0.0, 1.0),
    "blur": (0.0, 20.0),
    "jpeg_probability": (0.0, 1.0),
    "jpeg_quality": (1, 95),
    "view_dropout": (0.0, 0.9),
    "state_noise": (0.0, 10.0),
    "state_dropout": (0.0, 1.0),
}

# `default` has openpi's crop, rotation and jitter (`preprocess_observation`) and GR00T's hue (its fine-tuning scripts'
# color_jitter_params). `light` and `strong` are ours: about half as much, and more with a bad camera and a bad sensor.
PRESETS = {
    "light": AugmentationSettings(crop=0.98, rotation=2.0, brightness=0.15, contrast=0.2, saturation=0.25, hue=0.04),
    "default": AugmentationSettings(crop=0.95, rotation=5.0, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
    "strong": AugmentationSettings(
        crop=0.9,
        rotation=8.0,
        brightness=0.4,
        contrast=0.5,
        saturation=0.6,
        hue=0.1,
        blur_probability=0.2,
        jpeg_probability=0.3,
        view_dropout=0.05,
        state_noise=0.05,
        state_dropout=0.1,
    ),
}
STRENGTHS = ("none", *PRESETS)


def augmentation_settings(strength: str, details: Mapping[str, Any] | None = None) -> AugmentationSettings | None:
    """Settings of a strength with single fields changed; None for "none".

    Raises:
        ValueError: An unknown strength or field, a value out of range, or details without augmentation.
    """
    if strength not in STRENGTHS:
        raise ValueError(f"augmentation: expected one of {', '.join(STRENGTHS)}, got {strength!r}")
    known = [field.name for field in fields(AugmentationSettings)]
    for name in details or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            if "flip" in name or "mirror" in name:
                hint = "images are never mirrored, since actions and instructions would no longer fit them"
            raise ValueError(f"augmentation_details: unknown key {name!r}; {hint}")
    if strength == "none":
        if details:
            raise ValueError(
                f"augmentation_details: {dict(details)} has no effect with augmentation=none; choose a strength out of "
                f"{', '.join(PRESETS)}"
            )
        return None
    return replace(PRESETS[strength], **(details or {}))


class Augmentation:
    """Changes robot items (see `RobotDataset`) at random; the change depends on seed and key alone.

    Args:
        settings: What is changed, and how much.
        embodiments: `SyVLAProcessor.embodiments`, whose statistics give the unit of noise on the state.
        seed: Seed of all draws.
    """

    def __init__(
        self, settings: AugmentationSettings, embodiments: Mapping[str, Mapping[str, Any]], seed: int = 0
    ) -> None:
        self.settings, self.embodiments, self.seed = settings, embodiments, seed

    def __call__(self, item: Mapping[str, Any], key: tuple[int, ...]) -> dict[str, Any]:
        """The item with other `images`, and with `seen_state` where the model is to see another state than the recorded one.

        Args:
            item: A robot item with images uint8 (H, W, 3) and a raw state (D_state,).
            key: Non-negative integers that name the sample and the pass over its dataset. Processes, workers and resuming
                do not matter: the same key is the same change.
        """
        settings = self.settings
        rng = np.random.default_rng((self.seed % 2**63, *key))
        matrix = color_matrix(*self._color_draws(rng))
        images = {view: self._image(np.asarray(image), view, matrix, rng) for view, image in item["images"].items()}
        dropped = rng.random(len(images)) < settings.view_dropout
        if not dropped.all():
            images = {view: image for (view, image), gone in zip(images.items(), dropped, strict=True) if not gone}
        changed = {**item, "images": images}
        if settings.state_noise or settings.state_dropout:
            changed["seen_state"] = self._state(item, rng)
        return changed

    def _color_draws(self, rng: np.random.Generator) -> tuple[float, float, float, float]:
        settings = self.settings
        brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
        return (
            1 + settings.brightness * brightness,
            1 + settings.contrast * contrast,
            1 + settings.saturation * saturation,
            settings.hue * hue,
        )

    def _image(self, image: np.ndarray, view: str, matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        settings = self.settings
        # All is drawn for every view, so that what one view gets does not depend on the settings of the others.
        left, top, turn, blurred, sigma, compressed, quality = rng.random(7).tolist()
        fixed = "wrist" in view if settings.fixed_views is None else view in settings.fixed_views
        picture = Image.fromarray(image)
        if not fixed and (settings.crop < 1 or settings.rotation):
            angle = math.radians(settings.rotation * (2 * turn - 1))
            coefficients = crop_and_turn(picture.size, settings.crop, (left, top), angle)
            picture = picture.transform(
                picture.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
            )
        if not np.allclose(matrix[:, :3], np.eye(3)) or np.abs(matrix[:, 3]).any():
            picture = picture.convert("RGB", tuple(matrix.ravel().tolist()))
        if blurred < settings.blur_probability:
            picture = picture.filter(
                ImageFilter.GaussianBlur(sigma * settings.blur * picture.height / REFERENCE_HEIGHT)
            )
        if compressed < settings.jpeg_probability:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=round(settings.jpeg_quality + quality * (95 - settings.jpeg_quality)))
            picture = Image.open(file).convert("RGB")
        return np.asarray(picture)

    def _state(self, item: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """The state (D_state,) float32 that the model is to see, in raw units."""
        state = np.asarray(item["state"], dtype=np.float64)
        noise, dropped = rng.normal(size=state.shape), rng.random() < self.settings.state_dropout
        entry = self.embodiments[item["embodiment"]]
        offset, scale = np.zeros_like(state), np.ones_like(state)
        if (mode := entry["normalization"]["state"]) != "identity":
            offset, scale = offset_and_scale(entry["statistics"]["state"], mode)
        return (offset if dropped else state + self.settings.state_noise * noise * scale).astype(np.float32)


def crop_and_turn(
    size: tuple[int, int], crop: float, place: tuple[float, float], angle: float
) -> tuple[float, float, float, float, float, float]:
    """Coefficients of `PIL.Image.transform` for a crop that fills the image, turned about its center.

    Args:
        size: Width and height of the image in pixels.
        crop: Side of the crop as a share of the image's.
        place: Where the crop lies, in [0, 1]: 0 is at the left (top), 1 at the right (bottom).
        angle: Turn of the content in radians, counterclockwise.
    """
    width, height = size
    middle_x = width * (place[0] * (1 - crop) + crop / 2)
    middle_y = height * (place[1] * (1 - crop) + crop / 2)
    cosine, sine = crop * math.cos(angle), crop * math.sin(angle)
    return (
        cosine, -sine, middle_x - cosine * width / 2 + sine * height / 2,
        sine, cosine, middle_y - sine * width / 2 - cosine * height / 2,
    )  # fmt: skip


def color_matrix(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Affine map of colors (3, 4) on 0..255: hue and saturation about the gray axis, then brightness, then contrast.

    Args:
        brightness: Factor on all channels.
        contrast: Factor on the distance from mid-gray.
        saturation: Factor on the distance from gray of the same luma.
        hue: Turn of the hue, in turns of the color circle.
    """
    turn = 2 * math.pi * hue
    cosine, sine = saturation * math.cos(turn), saturation * math.sin(turn)
    in_yiq = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    linear = np.linalg.solve(_TO_YIQ, in_yiq @ _TO_YIQ) * brightness * contrast
    return np.column_stack([linear, np.full(3, 127.5 * (1 - contrast))])


def describe_augmentation(settings: AugmentationSettings | None) -> dict[str, Any]:
    """The fields of settings that change something, for cards and logs."""
    neutral = asdict(AugmentationSettings())
    return {} if settings is None else {key: value for key, value in asdict(settings).items() if value != neutral[key]}
