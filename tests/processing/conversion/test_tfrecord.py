"""The two wire formats against published constants and an encoder of the test's own."""

import struct

import numpy as np
import pytest

from syvla.processing.conversion.source import SourceError
from syvla.processing.conversion.tfrecord import Example, masked_checksum


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(name: str, feature: bytes) -> bytes:
    return field(1, field(1, field(1, name.encode()) + field(2, feature)))


def test_checksum_is_that_of_the_format():
    """CRC-32C of "123456789" is 0xE3069283 (RFC 3720's polynomial), then turned right by 15 bits, plus 0xA282EAD8."""
    turned = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_checksum(b"123456789") == (turned + 0xA282EAD8) % 2**32


def test_integers_of_every_length_packed_and_one_by_one():
    values = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]
    packed = field(3, field(1, b"".join(map(varint, values))))
    assert Example(example("a", packed)).integers("a").tolist() == values
    single = field(3, b"".join(varint(1 << 3) + varint(value) for value in values))
    assert Example(example("a", single)).integers("a").tolist() == values


def test_floats_packed_and_one_by_one():
    values = np.array([0.5, -2.25, np.inf], np.float32)
    assert Example(example("a", field(2, field(1, values.tobytes())))).floats("a").tolist() == values.tolist()
    single = field(2, b"".join(varint(1 << 3 | 5) + struct.pack("<f", value) for value in values))
    assert Example(example("a", single)).floats("a").tolist() == values.tolist()


def test_lists_of_bytes_and_empty_lists():
    found = Example(example("a", field(1, field(1, b"x") + field(1, b""))))
    assert [bytes(blob) for blob in found.blobs("a")] == [b"x", b""]
    assert Example(example("a", field(3, b""))).integers("a").tolist() == []


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes_end_in_an_error_or_in_nothing(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(example("a", field(3, field(1, b"".join(map(varint, range(200)))))))
    for position in rng.integers(0, len(data), 8):
        data[position] = rng.integers(0, 256)
    try:
        found = Example(bytes(data))
        for name in found.names():
            assert found.numbers(name).size <= len(data)
    except SourceError:
        pass
