"""A camera's picture as a checkpoint's processor hands it to the model: resized, cropped, in whole patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from syvla.processing.transforms import infer_cameras


class ModelPictures:
    """What a model sees.

    Args:
        processor: A `SyVLAProcessor`.
        cameras: The dataset's cameras; those that no view shows are left out.
    """

    def __init__(self, processor: Any, cameras: list[str]) -> None:
        self._processor = processor
        self.views: Mapping[str, str] = infer_cameras(cameras, processor.views)
        """View to camera."""

    def __call__(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        """Both inputs made of a picture uint8 (H, W, 3): of the language model and of the action expert, uint8 (H', W', 3)."""
        return {
            "language model": self._patches(picture),
            "action expert": _pixels(self._expert(picture), self._processor.expert_image_processor),
        }

    def _expert(self, picture: np.ndarray) -> np.ndarray:
        made = self._processor.expert_image_processor(
            images=[picture], return_tensors="np", input_data_format="channels_last"
        )
        values: np.ndarray = np.asarray(made["pixel_values"])[0]
        return values

    def _patches(self, picture: np.ndarray) -> np.ndarray:
        """The picture put together again from the language model's patches."""
        images = self._processor.image_processor
        made = images(images=[picture], return_tensors="np", input_data_format="channels_last")
        _, rows, columns = (int(n) for n in np.asarray(made["image_grid_thw"])[0])
        patch, merge, times = images.patch_size, images.merge_size, images.temporal_patch_size
        flat = np.asarray(made["pixel_values"]).reshape(
            rows // merge, columns // merge, merge, merge, 3, times, patch, patch
        )[..., 0, :, :]  # (R, C, m, m, 3, p, p)
        values = flat.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
        return _pixels(values, images)


def load_model_pictures(checkpoint: str, cameras: list[str]) -> ModelPictures:
    """Of a checkpoint's processor.

    Raises:
        ValueError, OSError: It cannot be loaded, or the cameras' names are like none of its views.
    """
    from syvla.processing.processing_syvla import SyVLAProcessor

    return ModelPictures(SyVLAProcessor.from_pretrained(checkpoint), cameras)


def _pixels(values: np.ndarray, images: Any) -> np.ndarray:
    """Normalized values (3, H, W) back as uint8 (H, W, 3)."""
    mean, std = (np.asarray(getattr(images, name)).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    shown = (np.asarray(values, np.float64) * std + mean) * 255
    pixels: np.ndarray = np.clip(np.round(shown), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels)
