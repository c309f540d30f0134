"""View naming and resizing."""

import numpy as np
import pytest

from syvla.processing.transforms import NameViews, ResizeViews, camera_line, infer_cameras


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
        (  # parts with dots; cameras that are like no view are left out
            ["observation.images.front", "observation.images.wrist.left", "observation.images.side"],
            {"center": "observation.images.front", "left_wrist": "observation.images.wrist.left"},
        ),
        (
            ["observation.images.cam_high", "observation.images.cam_low", "observation.images.cam_right_wrist"],
            {"center": "observation.images.cam_high", "right_wrist": "observation.images.cam_right_wrist"},
        ),
    ],
)
def test_views_are_found_in_common_names(keys, expected):
    assert infer_cameras(keys) == expected


@pytest.mark.parametrize("keys", [["o.foo", "o.bar"], ["o.top", "o.front"], []])
def test_unclear_names_are_listed_with_the_fix(keys):
    with pytest.raises(ValueError, match=r'cameras=\{"center"'):
        infer_cameras(keys)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (("front", "side"), {"front": "o.images.front", "side": "o.images.side"}),
        (("side", "left_wrist"), {"side": "o.images.side", "left_wrist": "o.images.wrist.left"}),
        (("center", "side"), {"center": "o.images.front", "side": "o.images.side"}),
        (("wrist_left", "front"), {"wrist_left": "o.images.wrist.left", "front": "o.images.front"}),
    ],
)
def test_views_of_other_names_take_the_cameras_of_these_names(views, expected):
    keys = [key.replace("o.", "observation.") for key in ("o.images.front", "o.images.side", "o.images.wrist.left")]
    found = infer_cameras(keys, views)
    assert found == {view: key.replace("o.", "observation.") for view, key in expected.items()}
    assert list(found) == [view for view in views if view in found]


def test_one_line_names_used_unused_and_missing_cameras():
    keys = ["o.images.top", "o.images.side"]
    line = camera_line({"center": "o.images.top"}, keys, ("center", "left_wrist", "right_wrist"))
    assert line == (
        "cameras: center = o.images.top; unused: o.images.side; views without a camera: left_wrist, right_wrist"
    )


def test_naming_and_resizing():
    images = {"head": np.zeros((4, 6, 3), np.uint8), "spare": np.ones((4, 6, 3), np.uint8)}
    views = NameViews({"center": "head", "left_wrist": "wrist"})(images)
    assert list(views) == ["center"]
    resized = ResizeViews(8, 12)(views)["center"]
    assert resized.shape == (8, 12, 3)
    assert resized.dtype == np.uint8
    assert ResizeViews(4, 6)(views)["center"] is views["center"]
