"""Whatever a request holds, reading it ends in an observation or in a ValueError, which the server answers with 422.

The msgpack codec has its own test, `test_codec.py::test_any_bytes_give_a_value_or_a_decode_error`.
"""

import base64
import io
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from syvla.serving.wire.dialect_files import dialect_names, load_dialect
from syvla.serving.wire.json_codec import decode_json
from syvla.serving.wire.msgpack_codec import CodecLimits, DecodeError
from syvla.serving.wire.request_reading import MAX_SEED, OPTIONS, OptionCaps, split_options

CASES = int(os.environ.get("SYVLA_FUZZ_CASES", 2_000))  # the longer mode: SYVLA_FUZZ_CASES=1000000
FUZZ = settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
NARROW = CodecLimits(max_message_bytes=2_000, max_elements=40, max_depth=6, max_array_bytes=64)

PICTURE = io.BytesIO()
Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(PICTURE, "PNG")
INTEGERS = st.one_of(st.integers(-2, 9), st.integers(-(2**70), 2**70), st.just(10**400))  # beyond every float
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), st.text(max_size=8))

# ---------------------------------------------------------------------- JSON

BASE64 = st.one_of(st.binary(max_size=24).map(lambda data: base64.b64encode(data).decode()), st.text(max_size=8))
FORGED_ARRAYS = st.fixed_dictionaries(
    {
        "data": BASE64 | SCALARS,
        "dtype": st.sampled_from(["<f4", "|u1", ">i8", "|b1", "|O", "<U3", "float32", "f4,f4", ""]) | SCALARS,
        "shape": st.lists(INTEGERS, max_size=4) | SCALARS,
    }
)
FILES = st.dictionaries(st.sampled_from(["jpeg", "png"]), BASE64 | SCALARS, min_size=1, max_size=2)
NAMES = st.sampled_from(["data", "dtype", "shape", "jpeg", "png", "a"]) | st.text(max_size=4)
JSON_VALUES = st.recursive(
    SCALARS | FORGED_ARRAYS | FILES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def json_bodies(draw) -> bytes:
    """JSON of any values, among them NaN and halves of characters, at times with bytes replaced, cut out or put in."""
    text = json.dumps(draw(JSON_VALUES), ensure_ascii=draw(st.booleans()))
    body = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"{", b'"'])
        )
    return bytes(body)


def leaves(value):
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


@FUZZ
@given(limits=st.sampled_from([CodecLimits(), NARROW]), body=st.one_of(st.binary(max_size=60), json_bodies()))
def test_any_body_gives_plain_values_or_a_decode_error(limits, body):
    try:
        value = decode_json(body, limits)
    except DecodeError:
        return
    for leaf in leaves(value):
        assert isinstance(leaf, bool | int | float | str | bytes | np.ndarray | None)
        assert not isinstance(leaf, np.ndarray) or leaf.dtype.kind in "biuf", "never objects"


# ---------------------------------------------------------------------- options

NUMBERS = arrays(
    st.sampled_from([np.dtype(code) for code in ("b1", "u1", "i8", "u8", "f2", "f4", "f8")]),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
RAGGED = st.lists(st.lists(st.floats() | INTEGERS, max_size=3), max_size=3)
DECODED = st.deferred(
    lambda: st.one_of(
        SCALARS,
        st.binary(max_size=8),
        NUMBERS,
        NUMBERS.map(lambda array: array.reshape(-1)[0] if array.size else array),
        RAGGED,
        st.lists(SCALARS, max_size=3),
        st.lists(INTEGERS, min_size=1, max_size=3),
        st.lists(NUMBERS, max_size=2),
        st.sampled_from([[{}], [[{}]], [[None]], [[{}, 1.0]]]),
        st.dictionaries(st.text(max_size=3), SCALARS, max_size=2),
    )
)
GOOD_OPTIONS = {
    "seed": 3, "think": 2, "max_new_tokens": 8, "num_steps": 4, "embodiment": "arm", "session_id": "robot",
    "episode_id": "first", "reset": True, "deadline_ms": 50.0, "request_id": "r1", "executed_steps": 2,
    "observe_only": False, "prev_chunk": np.zeros((4, 2)), "delay_steps": 1,
    "max_guidance_weight": 5.0, "noise": np.zeros((4, 2)),
}  # fmt: skip
ANY_OPTIONS = st.fixed_dictionaries(
    {}, optional={name: st.just(GOOD_OPTIONS[name]) | DECODED if name in GOOD_OPTIONS else DECODED for name in OPTIONS}
)


@FUZZ
@given(request=ANY_OPTIONS | DECODED, more=st.dictionaries(st.text(max_size=4), SCALARS, max_size=2))
def test_any_request_gives_options_within_the_caps_or_a_value_error(request, more):
    caps = OptionCaps()
    if isinstance(request, dict):
        request = {**more, **request}
    try:
        options, rest = split_options(request, caps)
    except ValueError:
        return
    within(options, caps)
    assert rest == {name: value for name, value in request.items() if name not in OPTIONS}


def within(options: dict, caps: OptionCaps) -> None:
    assert type(options["seed"]) is int
    assert 0 <= options["seed"] <= MAX_SEED
    assert options["max_new_tokens"] is None or 1 <= options["max_new_tokens"] <= caps.max_new_tokens
    assert options["num_steps"] is None or 1 <= options["num_steps"] <= caps.num_steps
    if (correction := options["correction"]) is not None:
        assert (correction.dtype, correction.ndim, options["observe_only"]) == (np.float32, 1, True)
        assert np.isfinite(correction).all()
    if (noise := options["noise"]) is not None:
        assert (noise.dtype, noise.ndim, options["observe_only"]) == (np.float32, 2, False)
        assert np.isfinite(noise).all()
    assert options["deadline_s"] is None or 0 < options["deadline_s"] <= caps.deadline_s
    if (previous := options["previous"]) is not None:
        assert previous.actions.dtype == np.float32
        assert previous.actions.ndim == 2
        assert np.isfinite(previous.actions).all()
        assert 0 <= previous.delay <= len(previous.actions)


# ---------------------------------------------------------------------- dialects

IMAGES = st.one_of(
    st.sampled_from([np.zeros((4, 4, 3), np.uint8), np.zeros((3, 4, 4), np.uint8), np.ones((4, 4, 3)), b"\x89PNG"]),
    st.integers(0, len(PICTURE.getvalue())).map(lambda length: PICTURE.getvalue()[:length]),
    st.just(PICTURE.getvalue()),
    DECODED,
)
DIALECTS = {name: load_dialect(name) for name in dialect_names()}


@st.composite
def requests_in(draw, name: str) -> dict:
    """What a client of the dialect sends, with any of its entries replaced, left out, or joined by others."""
    dialect = DIALECTS[name]
    entries = {keys[0]: draw(IMAGES) for keys in dialect.images.values() if draw(st.integers(0, 9))}
    for part in dialect.state:
        entries[part.key] = draw(st.just(np.zeros(part.dim or 3)) | DECODED)
    for key in dialect.prompt:
        if draw(st.booleans()):
            entries[key] = draw(st.just("lift") | DECODED)
    request: dict = {}
    for key, value in entries.items():
        place = request
        for step in key[:-1]:
            place = place.setdefault(step, {})
        place[key[-1]] = value
    stray = st.sampled_from([key[0] for key in entries]) | st.text(max_size=4)
    return {**request, **draw(st.dictionaries(stray, DECODED, max_size=1))} if not draw(st.integers(0, 3)) else request


@pytest.mark.parametrize("name", DIALECTS)
@settings(FUZZ, max_examples=max(1, CASES // len(DIALECTS)))
@given(data=st.data())
def test_any_request_gives_an_observation_or_a_value_error(name, data):
    request = data.draw(requests_in(name))
    dialect = DIALECTS[name]
    assert isinstance(dialect.recognized(request), int)
    try:
        images, state, prompt = dialect.read(request)
    except ValueError:
        return
    assert prompt.strip()
    assert state.dtype == np.float32
    assert np.isfinite(state).all()
    assert images
    for image in images.values():
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
