"""The table that a person plays with: where a click lands, what moves, what is refused."""

import numpy as np
import pytest

from syvla.evaluation.environments.tabletop.scene import COLORS
from syvla.evaluation.play.scene import TABLE, PlayScene


@pytest.fixture
def scene():
    scene = PlayScene()
    scene.draw(1_000_003, color="blue")
    yield scene
    scene.close()


def blue_middle(picture):
    """Column and row of the middle of what is blue."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    rows, columns = np.nonzero((blue > 2 * red) & (blue > 2 * green))
    return columns.mean(), rows.mean()


@pytest.mark.parametrize("place", [(0.02, 0.05), (-0.04, -0.1), (0.08, 0.12)])
def test_a_click_on_the_cube_means_its_place(scene, place):
    """Within two centimeters: the cube's visible middle lies above the table and shows one more side."""
    scene.move_object(*place)
    assert np.allclose(scene.object_place, place)
    assert np.allclose(scene.place_at_pixel(*blue_middle(scene.pictures()["head"])), place, atol=0.02)


def test_a_moved_object_is_seen_by_the_policy_and_the_robot_stays(scene):
    before, state = scene.observation["images"]["head"].copy(), scene.observation["state"].copy()
    x, y = scene.object_place
    scene.move_object(x, -y)
    assert (scene.observation["images"]["head"] != before).any()
    assert np.array_equal(scene.observation["state"], state)
    scene.step(np.asarray(scene.env.state, np.float32))
    assert np.allclose(scene.object_place, (x, -y), atol=1e-3), "it lies still"


def test_clicks_beyond_the_table_are_pulled_onto_it(scene):
    for column in (0, 383):
        x, y = scene.place_at_pixel(column, 0)
        assert TABLE["x"][0] <= x <= TABLE["x"][1]
        assert TABLE["y"][0] <= y <= TABLE["y"][1]


def test_a_scene_is_drawn_as_asked(scene):
    assert scene.draw(1_000_009, color="green", position=(0.05, -0.09), distractors=2) == "lift the green cube"
    assert np.allclose(scene.object_place, (0.05, -0.09), atol=1e-6)
    assert len(scene.env.layout.objects) == 3
    assert len(set(scene.env.layout.colors.values())) == 3


def test_what_cannot_be_is_refused(scene):
    with pytest.raises(ValueError, match=r"color: expected one of .* got .pink."):
        scene.draw(1, color="pink")
    with pytest.raises(ValueError, match=r"y: expected -0.13 to 0.13 meters.* got 0.5"):
        scene.move_object(0.0, 0.5)
    with pytest.raises(ValueError, match="x: expected"):
        scene.move_object(float("nan"), 0.0)
    assert "pink" not in COLORS
