"""Pictures of every mode become what a person sees; expected pixels are set by hand, not by the code under test."""

import io

import numpy as np
import pytest
from PIL import Image

from syvla.processing.image_inputs import to_rgb


def reopened(image: Image.Image, kind: str, **options) -> Image.Image:
    """The picture as its file holds it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def corners() -> Image.Image:
    """3 x 2 pixels: red above left, green above right, blue below left."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0], pixels[0, 2], pixels[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return Image.fromarray(pixels)


# Where the stored picture's corner of (row 0, column 0) is to be shown, by the EXIF standard: row 0 and column 0 of the
# stored picture are the visual (top, left), (top, right), (bottom, right), (bottom, left), (left, top), (right, top),
# (right, bottom), (left, bottom).
SHOWN = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_the_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = np.asarray(to_rgb(reopened(corners(), kind, exif=exif)))
    assert shown.shape == ((2, 3, 3) if orientation < 5 else (3, 2, 3))
    assert shown[SHOWN[orientation]].tolist() == [255, 0, 0]


def test_a_photo_taken_upright_is_upright():
    """Orientation 6, as telephones write it: the camera was turned, row 0 of the sensor is the right side."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    shown = np.asarray(to_rgb(reopened(Image.fromarray(stored), "jpeg", exif=exif, quality=95)))
    assert shown.shape == (60, 40, 3)
    assert shown[:, 25:].min() > 200
    assert shown[:, :15].max() < 50


def test_sixteen_bits_are_scaled():
    levels = np.array([[0, 257, 255, 32_896, 65_535]], np.uint16)  # 257 is level 1 of 8 bits, 255 nearly
    image = reopened(Image.fromarray(levels), "png")
    assert image.mode.startswith("I")
    assert np.asarray(to_rgb(image))[0].tolist() == [[level] * 3 for level in (0, 1, 1, 128, 255)]
    assert np.asarray(to_rgb(Image.fromarray(levels.astype(np.int32))))[0, 4].tolist() == [255] * 3


@pytest.mark.parametrize("image", [Image.new("F", (2, 2), 0.5), Image.fromarray(np.full((2, 2), 70_000, np.int32))])
def test_values_of_unknown_range_are_refused(image):
    with pytest.raises(ValueError, match=r"floating-point|expected at most 16 bits"):
        to_rgb(image)


def test_transparency_is_shown_over_white():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    expected = [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    image = Image.fromarray(rgba)
    for picture in (image, reopened(image, "png"), reopened(image, "webp", lossless=True, exact=True)):
        np.testing.assert_allclose(np.asarray(to_rgb(picture))[0], expected, atol=1)
    gray = Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), "LA")
    assert np.asarray(to_rgb(reopened(gray, "png")))[0].tolist() == [[0] * 3, [255] * 3]


def test_transparent_colors_of_palettes_and_of_plain_pictures():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 90])
    palette.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(reopened(palette, "png")))[0].tolist() == [[200, 0, 0], [0, 0, 90]]
    for kind in ("png", "gif"):
        shown = np.asarray(to_rgb(reopened(palette, kind, transparency=1)))[0]
        assert shown.tolist() == [[200, 0, 0], [255, 255, 255]]
    plain = Image.new("RGB", (2, 1), (1, 2, 3))
    plain.putpixel((1, 0), (9, 9, 9))
    shown = np.asarray(to_rgb(reopened(plain, "png", transparency=(9, 9, 9))))[0]
    assert shown.tolist() == [[1, 2, 3], [255, 255, 255]]


def test_other_modes():
    assert np.asarray(to_rgb(Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]
    assert np.asarray(to_rgb(Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]
    ink = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg", quality=95)  # magenta and yellow make red
    assert ink.mode == "CMYK"
    np.testing.assert_allclose(np.asarray(to_rgb(ink))[4, 4], [255, 0, 0], atol=4)


def test_the_first_picture_of_an_animation_is_taken():
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for kind in ("gif", "webp", "png"):
        animation = reopened(
            red, kind, save_all=True, append_images=[blue], **({"lossless": True} if kind == "webp" else {})
        )
        assert animation.n_frames == 2
        assert np.asarray(to_rgb(animation))[0, 0].tolist() == [255, 0, 0]
