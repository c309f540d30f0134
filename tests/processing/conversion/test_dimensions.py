"""Gripper conventions and differences against values worked out by hand."""

import numpy as np
import pytest

from syvla.processing.conversion.dimensions import CHANGES, binarized, closing_events, next_angle_difference
from syvla.processing.conversion.mapping import CHANGE_NAMES, load_preset, presets


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((0, 1, 0, -1, 0), (1, 0, 0, 1, 1)),  # closes, then opens: open before
        ((0, -1, 0, 1), (0, 1, 1, 0)),  # opens first: closed before
        ((0, 0.05, 0), (1, 1, 1)),  # no command: open
    ],
)
def test_closing_events(commands, expected):
    np.testing.assert_array_equal(closing_events(column(*commands)), column(*expected))


def test_binarized_takes_what_the_gripper_reaches():
    np.testing.assert_array_equal(binarized(column(1, 0.6, 0.3, 0, 0.5, 0.99)), column(1, 0, 0, 0, 1, 1))
    np.testing.assert_array_equal(binarized(column(1, 0.6)), column(1, 1))


def test_differences_of_angles_take_the_short_way():
    np.testing.assert_allclose(next_angle_difference(column(3.1, -3.1, -3.0)), column(2 * np.pi - 6.2, 0.1, 0))


def test_names_in_mapping_files_are_those_that_exist():
    assert tuple(CHANGES) == CHANGE_NAMES


@pytest.mark.parametrize("name", presets())
def test_every_preset_can_be_read_and_has_one_name_per_dimension(name):
    found = load_preset(name)
    assert found.state
    assert found.action
    assert found.note
