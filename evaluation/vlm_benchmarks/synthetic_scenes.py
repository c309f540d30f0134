"""Small pictures of colored shapes and digits, drawn from a random stream, for the synthetic benchmarks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 50),
    "orange": (240, 140, 30),
    "purple": (150, 60, 190),
}
KINDS = ("circle", "square", "triangle")
LIGHT, DARK = (238, 238, 232), (24, 24, 44)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Strokes of a seven-segment digit: top, upper left, upper right, middle, lower left, lower right, bottom.
_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
_STROKES = (
    (0.0, 0.0, 1.0, 0.16),
    (0.0, 0.0, 0.24, 0.54),
    (0.76, 0.0, 1.0, 0.54),
    (0.0, 0.42, 1.0, 0.58),
    (0.0, 0.46, 0.24, 1.0),
    (0.76, 0.46, 1.0, 1.0),
    (0.0, 0.84, 1.0, 1.0),
)


@dataclass(frozen=True)
class Shape:
    """A filled shape; `x`, `y` and `radius` are shares of the picture's side."""

    kind: str
    color: str
    x: float
    y: float
    radius: float = 0.17


def draw(
    rng: random.Random,
    side: int,
    shapes: tuple[Shape, ...] | list[Shape] = (),
    digit: int | None = None,
    digit_x: float = 0.27,
    background: tuple[int, int, int] = LIGHT,
) -> Any:
    """A square PIL image, `side` pixels wide, every shape slightly moved so that no two pictures are the same.

    The digit is black, half the picture high, and centered at the share `digit_x` of the width.
    """
    from PIL import Image, ImageDraw

    shade = rng.randint(-8, 8)
    picture = Image.new("RGB", (side, side), tuple(min(255, max(0, value + shade)) for value in background))
    canvas = ImageDraw.Draw(picture)
    for shape in shapes:
        x = (shape.x + rng.uniform(-0.03, 0.03)) * side
        y = (shape.y + rng.uniform(-0.03, 0.03)) * side
        radius = shape.radius * rng.uniform(0.9, 1.1) * side
        fill = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in COLORS[shape.color])
        if shape.kind == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        elif shape.kind == "square":
            canvas.rectangle((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            canvas.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    if digit is not None:
        _draw_digit(canvas, digit, digit_x * side + rng.uniform(-1, 1), 0.5 * side + rng.uniform(-1, 1), 0.5 * side)
    for _ in range(side // 8):  # specks: a second picture of the same things differs
        speck = tuple(rng.randint(0, 255) for _ in range(3))
        picture.putpixel((rng.randrange(side), rng.randrange(side)), speck)
    return picture


def _draw_digit(canvas: Any, digit: int, x: float, y: float, height: float) -> None:
    width = 0.62 * height
    left, top = x - width / 2, y - height / 2
    for stroke, (x0, y0, x1, y1) in zip(_SEGMENTS[digit], _STROKES, strict=True):
        if stroke == "1":
            canvas.rectangle(
                (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height), fill=(10, 10, 10)
            )


def spots(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """`count` of nine places, too far apart for shapes of radius 0.1 to touch."""
    return rng.sample([(x, y) for x in (0.18, 0.5, 0.82) for y in (0.18, 0.5, 0.82)], count)
