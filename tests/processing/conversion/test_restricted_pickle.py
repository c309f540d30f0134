"""What the unpickler admits, and what it refuses without running it."""

import contextlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from syvla.processing.conversion.restricted_pickle import PickledArray, RestrictedUnpickler, as_array, load_object
from syvla.processing.conversion.source import SourceError


def saved(path: Path, data: bytes) -> Path:
    """A `.npy` file whose object is the pickle `data`."""
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, header)
    path.write_bytes(stream.getvalue() + data)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_lists_texts_and_numbers_come_back(tmp_path, protocol):
    value = {
        "a": [{"timestamp": 12, "tcp": np.arange(7) / 3}],
        "b": {1: np.array([1, 2], ">i4"), 2: np.float64(0.25), 3: np.int64(-5)},
        "c": ("text", None, True, 1.5, np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    }
    path = saved(tmp_path / "a.npy", pickle.dumps(np.array(value, object), protocol))
    if protocol == 2:  # writes bytes as a call of _codecs.encode, which is not admitted
        with pytest.raises(SourceError, match=r"_codecs\.encode"):
            load_object(path)
        return
    found = load_object(path)
    np.testing.assert_array_equal(as_array(found["a"][0]["tcp"]), np.arange(7) / 3)
    assert found["a"][0]["timestamp"] == 12
    assert as_array(found["b"][1]).tolist() == [1, 2]
    assert (found["b"][2], found["b"][3]) == (0.25, -5)
    assert found["c"][:4] == ("text", None, True, 1.5)
    np.testing.assert_array_equal(found["c"][4].array(), np.arange(6.0).reshape(2, 3))


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {marker}"),
        (eval, "open('{marker}', 'w')"),
        (getattr, "x", "upper"),
        (np.load, "{marker}"),
        (np.ndarray, (2**40,)),
        (io.BytesIO,),
    ],
)
def test_calls_are_refused_and_not_made(tmp_path, call):
    marker = tmp_path / "marker"
    arguments = [part.format(marker=marker) if isinstance(part, str) else part for part in call[1:]]
    path = saved(tmp_path / "a.npy", pickle.dumps(np.array({"a": Attack(call[0], *arguments)}, object)))
    if call[0] is np.ndarray:
        with pytest.raises(SourceError, match=r"expected numbers|an array that is none"):
            as_array(load_object(path)["a"])  # a stand-in: nothing of this size was allocated
    else:
        with pytest.raises(SourceError, match="only arrays, dicts, lists, texts and numbers"):
            load_object(path)
    assert not marker.exists()


def test_arrays_whose_bytes_do_not_fit_are_refused():
    whole = pickle.dumps(np.arange(4.0))
    for forged in (whole.replace(b"K\x04\x85", b"K\x05\x85"), whole.replace(b"\x8c\x02f8", b"\x8c\x02O8")):
        assert forged != whole
        found = RestrictedUnpickler(io.BytesIO(forged)).load()
        assert isinstance(found, PickledArray)
        with pytest.raises(SourceError, match="an array of"):
            found.array()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_end_in_one_kind_of_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    np.save(tmp_path / "a.npy", {"a": [np.arange(5.0), {"b": "text"}], "c": 3})
    data = bytearray((tmp_path / "a.npy").read_bytes())
    for position in rng.integers(128, len(data), 3):
        data[position] = rng.integers(0, 256)
    (tmp_path / "a.npy").write_bytes(data[: rng.integers(100, len(data) + 1)])
    with contextlib.suppress(SourceError):  # any other error fails the test
        load_object(tmp_path / "a.npy")
