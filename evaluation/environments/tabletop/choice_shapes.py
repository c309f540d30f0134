"""Things of the instruction-following tasks as MJCF: blocks that show a digit, an open box, and the items to put in it.

Everything is made of boxes, cylinders and spheres with plain colors, as the ray-cast cameras know no textures. A digit
is a raised seven-segment glyph on a 3 x 5 grid that fills the block's top: its strokes are 14 mm wide, because a pixel
of the head camera is about 12 mm wide at 32 x 32 pixels, 8 mm at 48 and 6 mm at 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco

NUMBER_HALF_SIZE = (0.042, 0.027, 0.024)  # meters; long in the direction of the digit, gripped across it
NUMBER_COLOR = (0.10, 0.12, 0.32)
DIGIT_COLOR = (0.99, 0.97, 0.90)
STROKE = 0.014  # meters
DIGIT_SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""Lit segments of 0 to 9: a top, b and c right (upper, lower), d bottom, e and f left (lower, upper), g middle."""

CONTAINER_INNER_HALF_SIZE = 0.05  # meters
CONTAINER_WALL = 0.004  # meters
CONTAINER_HEIGHT = 0.035  # meters
CONTAINER_COLOR = (0.45, 0.47, 0.50)

_CONTACT = 'contype="4" conaffinity="7"'  # as other objects on the table: with both arms, the table and each other
_NO_CONTACT = 'contype="0" conaffinity="0" mass="0"'


@dataclass(frozen=True)
class Part:
    """A primitive of an item: MuJoCo's geom type and size [m], where it sits in the body [m], and its color."""

    geom: str
    size: tuple[float, ...]
    color: tuple[float, float, float]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ItemShape:
    """An item that a gripper can take.

    Attributes:
        core: What collides, centered in the body; it decides height and grip.
        trim: Parts that are only seen.
        grip_width: Size [m] in the direction in which the gripper closes (the body's y).
        round: Whether any direction is as good to grip.
    """

    core: Part
    trim: tuple[Part, ...]
    grip_width: float
    round: bool = False

    @property
    def half_height(self) -> float:
        """Height [m] of the center above the table at rest."""
        return self.core.size[{"box": 2, "cylinder": 1, "sphere": 0}[self.core.geom]]


_WOOD, _STEEL, _BROWN, _GOLD = (0.70, 0.45, 0.20), (0.25, 0.26, 0.30), (0.36, 0.18, 0.09), (0.95, 0.78, 0.25)
_BLUE, _WHITE, _RED, _STALK = (0.15, 0.45, 0.95), (0.97, 0.97, 0.97), (0.85, 0.10, 0.12), (0.20, 0.45, 0.10)
_GREEN, _BLACK, _YELLOW, _SCOURER = (0.05, 0.62, 0.30), (0.05, 0.05, 0.05), (0.97, 0.88, 0.20), (0.10, 0.40, 0.22)

ITEM_SHAPES: dict[str, ItemShape] = {
    "bottle": ItemShape(
        Part("cylinder", (0.025, 0.034), _BLUE), (Part("cylinder", (0.013, 0.007), _WHITE, (0, 0, 0.041)),), 0.05, True
    ),
    "apple": ItemShape(
        Part("sphere", (0.029,), _RED), (Part("box", (0.012, 0.005, 0.004), _STALK, (0.008, 0, 0.028)),), 0.058, True
    ),
    "chocolate": ItemShape(
        Part("box", (0.040, 0.024, 0.016), _BROWN), (Part("box", (0.011, 0.0245, 0.0165), _GOLD),), 0.048
    ),
    "hammer": ItemShape(
        Part("box", (0.034, 0.011, 0.016), _WOOD), (Part("box", (0.010, 0.032, 0.0165), _STEEL, (0.034, 0, 0)),), 0.022
    ),
    "marker": ItemShape(
        Part("box", (0.042, 0.011, 0.014), _GREEN),
        (Part("box", (0.012, 0.0115, 0.0145), _BLACK, (0.032, 0, 0)),),
        0.022,
    ),
    "sponge": ItemShape(
        Part("box", (0.034, 0.026, 0.018), _YELLOW),
        (Part("box", (0.034, 0.026, 0.004), _SCOURER, (0, 0, 0.017)),),
        0.052,
    ),
}


def number_block(name: str, mass: float) -> str:
    """MJCF body of a block whose digit `show_digit` sets."""
    x, y, z = NUMBER_HALF_SIZE
    half = STROKE / 2
    right, upper, top = y - half, (x - half) / 2, x - half  # centers of the strokes
    across, along = f"{half:.6g} {right + half:.6g} 0.001", f"{upper + half:.6g} {half:.6g} 0.001"
    segments = {
        "a": (top, 0.0, across),
        "b": (upper, -right, along),  # seen from the head camera, the body's -y is to the right
        "c": (-upper, -right, along),
        "d": (-top, 0.0, across),
        "e": (-upper, right, along),
        "f": (upper, right, along),
        "g": (0.0, 0.0, across),
    }
    glyph = "".join(
        f'<geom name="{name}_{key}" type="box" size="{size}" pos="{px:.6g} {py:.6g} {z + 0.001:.6g}" {_NO_CONTACT}/>'
        for key, (px, py, size) in segments.items()
    )
    return f"""<body name="{name}"><freejoint name="{name}"/>
      <geom name="{name}" type="box" size="{x} {y} {z}" mass="{mass}" {_CONTACT} {_rgba(NUMBER_COLOR)}/>{glyph}</body>"""


def show_digit(model: mujoco.MjModel, name: str, digit: int) -> None:
    """Lights the segments of a digit on the block `name`; those of the others are made invisible to rays and viewers."""
    for key in "abcdefg":
        model.geom(f"{name}_{key}").rgba[:] = (*DIGIT_COLOR, float(key in DIGIT_SEGMENTS[digit]))


def container(name: str) -> str:
    """MJCF body of an open box that stands fixed on the table."""
    inner, wall, half = CONTAINER_INNER_HALF_SIZE, CONTAINER_WALL, CONTAINER_HEIGHT / 2
    outer, middle = inner + 2 * wall, inner + wall
    sides = [(middle, 0, wall, outer), (-middle, 0, wall, outer), (0, middle, inner, wall), (0, -middle, inner, wall)]
    walls = "".join(
        f'<geom type="box" size="{sx} {sy} {half}" pos="{x} {y} {half}" {_CONTACT} {_rgba(CONTAINER_COLOR)}/>'
        for x, y, sx, sy in sides
    )
    floor = f'<geom name="{name}" type="box" size="{inner} {inner} 0.001" {_NO_CONTACT} rgba="0.28 0.29 0.32 1"/>'
    return f'<body name="{name}">{floor}{walls}</body>'


def item(name: str, shape: str, mass: float) -> str:
    """MJCF body of an item of the catalog."""
    thing = ITEM_SHAPES[shape]
    # Friction against rolling, the third number [m], lets a sphere come to rest; it counts from six contact dimensions on.
    core = f'name="{name}" mass="{mass}" condim="6" friction="1.0 0.02 0.004" {_CONTACT}'
    trim = "".join(_geom(part, _NO_CONTACT) for part in thing.trim)
    return f'<body name="{name}"><freejoint name="{name}"/>{_geom(thing.core, core)}{trim}</body>'


def _geom(part: Part, attributes: str) -> str:
    return (
        f'<geom type="{part.geom}" size="{" ".join(map(str, part.size))}" pos="{" ".join(map(str, part.position))}"'
        f" {attributes} {_rgba(part.color)}/>"
    )


def _rgba(color: Sequence[float]) -> str:
    return f'rgba="{color[0]} {color[1]} {color[2]} 1"'
