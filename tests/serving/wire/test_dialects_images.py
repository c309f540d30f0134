"""Pictures of requests are read as they are shown."""

import io

import numpy as np
import pytest
from PIL import Image

from syvla.serving.wire.dialects import decode_image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_photo_taken_upright_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: row 0 of the sensor is the right side
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8] = 255
    shown = decode_image(encoded(Image.fromarray(stored), "jpeg", exif=exif, quality=95))
    assert shown.shape == (32, 16, 3)
    assert shown[:, 10:].min() > 200
    assert shown[:, :6].max() < 50


def test_what_is_transparent_is_white():
    image = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8))
    assert decode_image(encoded(image, "png"))[0].tolist() == [[255] * 3, [9] * 3]


def test_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="8 bits per channel"):
        decode_image(encoded(Image.fromarray(np.zeros((2, 2), np.uint16)), "png"))
