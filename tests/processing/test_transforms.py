"""View naming and resizing."""

import numpy as np
import pytest

from syvla.processing.transforms import NameViews, ResizeViews, infer_cameras


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["observation.image"], {"center": "observation.image"}),
        (
            ["observation.images.cam_high", "observation.images.cam_left_wrist", "observation.images.cam_right_wrist"],
            {
                "center": "observation.images.cam_high",
                "left_wrist": "observation.images.cam_left_wrist",
                "right_wrist": "observation.images.cam_right_wrist",
            },
        ),
        (
            ["observation.images.image", "observation.images.wrist_image"],
            {"center": "observation.images.image", "left_wrist": "observation.images.wrist_image"},
        ),
        (
            ["o.head", "o.right_wrist", "o.ceiling"],
            {"center": "o.head", "right_wrist": "o.right_wrist"},
        ),
    ],
)
def test_views_are_found_in_common_names(keys, expected):
    assert infer_cameras(keys) == expected


@pytest.mark.parametrize("keys", [["o.foo", "o.bar"], ["o.top", "o.front"], []])
def test_unclear_names_are_listed_with_the_fix(keys):
    with pytest.raises(ValueError, match=r'cameras=\{"center"'):
        infer_cameras(keys)


def test_naming_and_resizing():
    images = {"head": np.zeros((4, 6, 3), np.uint8), "spare": np.ones((4, 6, 3), np.uint8)}
    views = NameViews({"center": "head", "left_wrist": "wrist"})(images)
    assert list(views) == ["center"]
    resized = ResizeViews(8, 12)(views)["center"]
    assert resized.shape == (8, 12, 3)
    assert resized.dtype == np.uint8
    assert ResizeViews(4, 6)(views)["center"] is views["center"]
