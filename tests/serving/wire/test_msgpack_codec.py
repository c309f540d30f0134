"""The wire codec: the bytes that other projects' clients write and read, and nothing else from anyone.

`data/golden_messages/` holds one message per codec, written by openpi-client 0.1.2 (`openpi`; `openpi-str` is the same with
text keys), by msgpack-numpy 0.4.8, and by `np.save` under GR00T N1.5's keys.
"""

import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syvla.serving.wire.msgpack_codec import CODECS, CodecLimits, DecodeError, pack, unpack

GOLDEN = Path(__file__).parents[2] / "data" / "golden_messages"
MESSAGE = {
    "image": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
    "state": np.array([0.5, -1.0], np.float32),
    "step": np.int64(7),
    "flag": np.bool_(True),
    "prompt": "go",
}
FUZZ_CASES = int(
    os.environ.get("SYVLA_FUZZ_CASES", 20_000)
)  # the longer mode: SYVLA_FUZZ_CASES=1000000 pytest -k any_bytes


def golden(codec: str) -> bytes:
    return (GOLDEN / f"{codec}.msgpack").read_bytes()


@pytest.mark.parametrize("codec", CODECS)
def test_golden_bytes_are_read_and_written(codec):
    value, named = unpack(golden(codec))
    assert named == codec, "answered in the codec it was asked in"
    assert list(value) == list(MESSAGE)
    for key, expected in MESSAGE.items():
        assert np.asarray(value[key]).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(value[key], expected)
    assert pack(MESSAGE, codec) == golden(codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "code", ["|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">f4"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_number_kind_and_shape_comes_back(codec, code, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(code)
    value, _ = unpack(pack({"a": array, "list": [array, {"inner": array}]}, codec))
    for got in (value["a"], value["list"][0], value["list"][1]["inner"]):
        assert got.shape == shape
        assert got.dtype == array.dtype.newbyteorder("=")
        assert not np.asarray(got).flags.writeable or shape == (), "a view of the message"
        np.testing.assert_array_equal(got, array)


def test_openpi_client_reads_and_writes_the_same():
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="scripts/install_test_peers.sh installs it")
    assert theirs.packb(MESSAGE) == golden("openpi")
    answer = theirs.unpackb(pack({"actions": np.ones((4, 2), np.float32), "thought": "reach", "n": 3}))
    assert answer["actions"].dtype == np.float32
    assert answer["actions"].shape == (4, 2)
    assert (answer["thought"], answer["n"]) == ("reach", 3)


def test_fortran_order_of_npy_is_undone(tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.save(tmp_path / "a.npy", array)
    message = msgpack.packb({"__ndarray_class__": True, "as_npy": (tmp_path / "a.npy").read_bytes()})
    np.testing.assert_array_equal(unpack(message)[0], array)


@pytest.mark.parametrize(
    "value", [np.array(["text"]), np.array([object()]), np.array([1j]), np.zeros(2, "f4,i4"), {1, 2}]
)
@pytest.mark.parametrize("codec", CODECS)
def test_what_cannot_be_sent_is_refused_when_packing(codec, value):
    with pytest.raises(ValueError, match=r"pack: expected"):
        pack({"key": value}, codec)


def openpi(dtype="<f4", data=b"\0" * 8, shape=(2,), **more) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}


def numpy_msgpack(type_, kind=b"", data=b"\1" * 8) -> dict:
    return {b"nd": True, b"type": type_, b"kind": kind, b"shape": [1], b"data": data}


def scalar(data, dtype) -> dict:
    return {b"__npgeneric__": True, b"data": data, b"dtype": dtype}


def npy(header: bytes, data: bytes = b"\0" * 8, version: int = 1) -> dict:
    start = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header))
    return {"__ndarray_class__": True, "as_npy": start + header + data}


FORGED = {  # a message's value under the key "state", and what the error must say
    "object pointers": (openpi("|O"), r"state: dtype: expected bool, int, uint or float.*got '\|O'"),
    "object pointers, msgpack-numpy": (numpy_msgpack("|O"), r"state: dtype"),
    "pickle, msgpack-numpy": (numpy_msgpack("|O", b"O", b"cos\nsystem\n"), r"state: kind: expected an empty"),
    "structured": (numpy_msgpack([["a", "<f4"]], b"V"), r"state: kind"),
    "structured by text": (openpi("f4,i4"), r"state: dtype.*'f4,i4'"),
    "text": (openpi("<U2"), r"state: dtype.*'<U2'"),
    "complex": (openpi("<c8"), r"state: dtype"),
    "dates": (openpi("<M8[s]"), r"state: dtype"),
    "long double": (openpi("<f16", b"\0" * 32), r"state: dtype"),
    "no dtype": ({b"__ndarray__": True, b"data": b"", b"shape": [0]}, r"state: dtype: .*got None"),
    "too few bytes": (openpi(shape=(3,)), r"state: data: expected 12 bytes for shape \[3\] of float32, got 8 bytes"),
    "too many bytes": (openpi(shape=(1,)), r"state: data: expected 4 bytes.*got 8"),
    "a huge shape": (openpi(shape=(2**40, 2**40)), r"state: shape: expected an array of at most 16777216 bytes"),
    "a huge empty shape": (openpi(data=b"", shape=(0, 2**40, 2**40)), r"state: shape: expected an array of at most"),
    "negative sizes": (openpi(shape=(-1, -2)), r"state: shape: expected a list of non-negative integers"),
    "a true size": (openpi(shape=(True, 2)), r"state: shape: expected a list of non-negative"),
    "a number as shape": (openpi(shape=2), r"state: shape"),
    "many dimensions": (openpi(shape=(1,) * 20), r"state: shape: expected at most 8 dimensions, got 20"),
    "text as data": (openpi(data="abcdefgh"), r"state: data: expected bytes, got str"),
    "bools that are none": (openpi("|b1", b"\1\2"), r"state: data: expected bytes 0 and 1"),
    "a scalar out of range": (scalar(300, "|i1"), r"state: data: .*range of int8, got 300"),
    "a fraction as integer": (scalar(1.5, "<i4"), r"state: data: expected a number for int32"),
    "a text as scalar": (scalar("x", "<f4"), r"state: data: expected a number"),
    "a pickle in npy": (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"), r"state: .*"),
    "code in npy": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (exit(),), }\n"), r"as_npy: expected a .npy"),
    "a long npy header": (npy(b"(" * 60_000), r"state: as_npy: expected a .npy header"),
    "an npy header beyond the end": (npy(b"", b"", 2), r"state: as_npy"),
    "no npy": ({"__ndarray_class__": True, "as_npy": b"PK\3\4"}, r"state: as_npy: expected the bytes of a .npy"),
    "a key twice": ({b"a": 1, "a": 2}, r"state.a: expected the key once"),
    "a key of bytes": ({b"\xff": 1}, r"state: expected keys of UTF-8 text"),
    "a long key": ({"k" * 1000: 1}, r"state: expected keys of at most 256 characters, got 1000"),
    "an extension": (msgpack.ExtType(5, b"x"), r"no msgpack extension types, got type 5"),
    "a time": (msgpack.Timestamp(1), r"state: expected numbers, texts, .*got Timestamp"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_values_are_refused_by_name(name):
    value, message = FORGED[name]
    with pytest.raises(DecodeError, match=message):
        unpack(msgpack.packb({"state": value}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"message: expected one msgpack value, got 0 other bytes"),
        (b"garbage, not msgpack", r"message: expected one msgpack value"),
        (golden("openpi")[:-1], r"message: expected one msgpack value"),
        (golden("openpi") + b"\x01", r"message: expected one msgpack value.*ExtraData"),
        (b"\x82\xa1a\x01\xa1a\x02", r"message: expected every key once"),
        (b"\x81\x01\x02", r"message: expected one msgpack value.*int"),
        (b"\xa2\xff\xff", r"message: expected one msgpack value.*Unicode"),
        (b"\x91" * 100 + b"\x01", r"expected at most 16 levels"),
        (b"\x91" * 100_000, r"message: expected one msgpack value"),
        (b"\xdd\xff\xff\xff\xff", r"message: expected one msgpack value.*exceeds"),
        (b"\xdf\x7f\xff\xff\xff", r"message: expected one msgpack value.*exceeds"),
        (msgpack.packb([[[]] * 1000] * 50), r"message: expected at most 20000 map and list entries"),
        (bytes(33 * 2**20), r"message: expected at most 33554432 bytes, got 34603008"),
    ],
)
def test_messages_that_are_none_are_refused(data, message):
    with pytest.raises(DecodeError, match=message):
        unpack(data)


def test_limits_can_be_set():
    array = pack(np.zeros(100, np.uint8))
    assert unpack(array)[0].shape == (100,)
    with pytest.raises(DecodeError, match="message: shape: expected an array of at most 99 bytes"):
        unpack(array, CodecLimits(max_array_bytes=99))


def test_the_codec_is_light():
    """A robot's computer needs numpy and msgpack for it, and neither torch nor transformers."""
    script = "import sys, syvla.serving.wire.msgpack_codec; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "msgpack"} <= set(loaded)
    assert not {"torch", "transformers", "fastapi", "PIL"} & set(loaded)


def test_few_bytes_never_take_much_memory():
    """Headers that announce millions of entries at every level, and messages of the smallest entries."""
    announced = (b"\xdc\x08\x00" * 1000, b"\xde\x08\x00\xa1a" * 1000, b"\xdd\x00\x00\x08\x00" * 1000)
    smallest = msgpack.packb([[{}] * 2000] * 2000)
    for data in (*announced, smallest):
        assert peak_memory(data) < 40 * 2**20


def peak_memory(data: bytes) -> int:
    """Bytes taken at most while decoding; DecodeError is the only exception allowed."""
    tracemalloc.start()
    try:
        unpack(data)
    except DecodeError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


MARKERS = ["__ndarray__", "__npgeneric__", "nd", "__ndarray_class__", "as_npy", "data", "dtype", "kind", "shape", "a"]
KEYS = st.sampled_from([*MARKERS, *(key.encode() for key in MARKERS)])
SIZES = st.one_of(st.integers(0, 4), st.integers(-(2**63), 2**64 - 1))
DTYPE_TEXTS = st.sampled_from(  # accepted ones and others
    ["<f4", "|u1", ">i8", "|b1", "|O", "<U3", "<c8", "|V8", "f4,f4", "float32", "<f16", "O", "", b"<f2"]
)
GOLDEN_NPY = msgpack.unpackb(golden("gr00t"))["state"]["as_npy"]
NPY = st.binary(max_size=40).map(lambda tail: GOLDEN_NPY[: -len(tail) or None] + tail)
NUMBERS = st.one_of(st.none(), st.booleans(), SIZES, st.floats())
LEAVES = st.one_of(NUMBERS, st.text(max_size=6), st.binary(max_size=32), DTYPE_TEXTS, NPY, st.lists(SIZES, max_size=4))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=6
)
ARRAYS = st.fixed_dictionaries(
    {b"__ndarray__": st.just(True)},
    optional={b"data": st.binary(max_size=64), b"dtype": DTYPE_TEXTS, b"shape": st.lists(SIZES, max_size=3)},
)


@st.composite
def damaged_messages(draw) -> bytes:
    """Golden messages with bytes replaced, cut out or put in."""
    data = bytearray(golden(draw(st.sampled_from(CODECS))))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


@pytest.mark.slow
@settings(max_examples=FUZZ_CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.binary(max_size=200), damaged_messages(), VALUES.map(msgpack.packb), ARRAYS.map(msgpack.packb)))
def test_any_bytes_give_a_value_or_a_decode_error(data):
    """Never another exception, a crash, or an allocation beyond the size of the message."""
    assert peak_memory(data) < 2**20
    try:
        value, codec = unpack(data)
    except DecodeError:
        return
    again, _ = unpack(pack(value, codec))  # what was accepted can be read (no bad pointers), and sent on
    assert repr(again) == repr(value)
