"""Names of dimensions in the forms that datasets on the Hub have."""

import pytest

from syvla.processing.robot_data.lerobot_format import dimension_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        ([["a", "b"]], ["a", "b"]),  # Unitree
        ([["a"], ["b"]], ["a", "b"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"left": ["a"], "right": ["b"]}, ["a", "b"]),
        ({"delta_x": 0, "delta_y": 1}, ["delta_x", "delta_y"]),
        ({"delta_y": 1, "delta_x": 0}, ["delta_x", "delta_y"]),
        (["a"], None),
        (None, None),
        ("ab", None),
    ],
)
def test_dimension_names(names, expected):
    assert dimension_names({"shape": [2], "names": names}) == expected
