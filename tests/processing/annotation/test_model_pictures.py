"""The picture that a model gets, put together again from what its processor makes."""

import numpy as np
import pytest
from PIL import Image

from syvla.modeling_syvla import SyVLAConfig
from syvla.processing import build_tiny_processor
from syvla.processing.annotation.model_pictures import ModelPictures

CAMERAS = ["observation.images.head", "observation.images.left_wrist", "observation.images.ceiling"]


@pytest.fixture(scope="module")
def pictures():
    return ModelPictures(build_tiny_processor(SyVLAConfig.tiny()), CAMERAS)


def quarters(height, width):
    """Red, green, black and blue quarters, in the order of reading."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, width // 2 :, 2] = 255
    return picture


def test_both_inputs_show_the_whole_picture_the_right_way_round(pictures):
    made = pictures(quarters(64, 96))
    assert made["action expert"].shape == (32, 32, 3), "squeezed to a square"
    height, width, _ = made["language model"].shape
    assert height < width
    assert height % pictures._processor.image_processor.patch_size == 0
    for picture in made.values():
        corners = [picture[y, x].tolist() for y in (4, -5) for x in (4, -5)]
        assert corners == [[255, 0, 0], [0, 255, 0], [0, 0, 0], [0, 0, 255]]


def test_the_language_model_gets_what_resizing_gives(pictures):
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64)))
    shown = pictures(picture)["language model"]
    height, width, _ = shown.shape
    expected = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    assert np.abs(shown.astype(int) - expected).max() <= 2


def test_cameras_that_no_view_shows_are_left_out(pictures):
    assert pictures.views == {"center": CAMERAS[0], "left_wrist": CAMERAS[1]}
