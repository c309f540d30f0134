"""Dialects: what openpi's clients send becomes an observation, and back; what does not fit is named."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from syvla.serving.wire.dialect_files import dialect_names, load_dialect
from syvla.serving.wire.dialects import MAX_PROMPT_LENGTH, decode_image, resize_with_pad
from syvla.serving.wire.msgpack_codec import pack, unpack

RNG = np.random.default_rng(0)
VIEWS = {view: RNG.integers(0, 256, (224, 224, 3), dtype=np.uint8) for view in ("center", "left_wrist", "right_wrist")}


def picture(height=224, width=224) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


CLIENTS = {  # as openpi's examples build them
    "libero": {
        "observation/image": VIEWS["center"],
        "observation/wrist_image": VIEWS["left_wrist"],
        "observation/state": np.arange(8.0),
        "prompt": "put the bowl on the plate",
    },
    "droid": {
        "observation/exterior_image_1_left": VIEWS["center"],
        "observation/wrist_image_left": VIEWS["left_wrist"],
        "observation/joint_position": np.arange(7.0),
        "observation/gripper_position": np.array([7.0]),
        "prompt": "put the bowl on the plate",
    },
    "aloha": {
        "state": np.arange(14.0),
        "images": {
            "cam_high": VIEWS["center"].transpose(2, 0, 1),
            "cam_low": np.zeros((3, 224, 224), np.uint8),
            "cam_left_wrist": VIEWS["left_wrist"].transpose(2, 0, 1),
            "cam_right_wrist": VIEWS["right_wrist"].transpose(2, 0, 1),
        },
        "prompt": "put the bowl on the plate",
    },
    "lerobot": {
        "observation.images.center": VIEWS["center"],
        "observation.images.left_wrist": (VIEWS["left_wrist"] / 255).astype(np.float32).transpose(2, 0, 1),
        "observation.state": np.arange(6.0),
        "task": "put the bowl on the plate",
    },
}


def test_every_dialect_has_a_client_here():
    assert dialect_names() == sorted(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_clients_request_becomes_an_observation(name):
    request, _ = unpack(pack(CLIENTS[name]))
    images, state, prompt = load_dialect(name).read(request)
    assert prompt == "put the bowl on the plate"
    assert state.dtype == np.float32
    np.testing.assert_array_equal(state, np.arange(len(state)))
    for view, image in images.items():
        np.testing.assert_array_equal(image, VIEWS[view])


@pytest.mark.parametrize("name", CLIENTS)
def test_request_and_observation_are_inverse(name):
    dialect = load_dialect(name)
    state = np.arange({"libero": 8, "droid": 8, "aloha": 14, "lerobot": 5}[name], dtype=np.float32)
    request = dialect.to_request(VIEWS, state, "go")
    images, read_state, prompt = dialect.read(unpack(pack(request))[0])
    assert prompt == "go"
    np.testing.assert_array_equal(read_state, state)
    assert set(images) == set(dialect.images)
    for view, image in images.items():
        np.testing.assert_array_equal(image, VIEWS[view])


def test_resizing_is_that_of_openpi_client():
    tools = pytest.importorskip("openpi_client.image_tools", reason="scripts/install_test_peers.sh installs it")
    for height, width in ((480, 640), (100, 30), (224, 224), (33, 224)):
        image = picture(height, width)
        np.testing.assert_array_equal(resize_with_pad(image, 224, 224), tools.resize_with_pad(image, 224, 224))
    np.testing.assert_array_equal(resize_with_pad(picture(9, 5), 4, 7), tools.resize_with_pad(picture(9, 5), 4, 7))


def test_images_of_another_size_are_padded_where_the_dialect_says_so():
    wide = picture(240, 320)
    request = {**CLIENTS["libero"], "observation/image": wide}
    images, _, _ = load_dialect("libero").read(request)
    np.testing.assert_array_equal(images["center"], resize_with_pad(wide, 224, 224))
    request = {**CLIENTS["lerobot"], "observation.images.center": wide}
    images, _, _ = load_dialect("lerobot").read(request)
    np.testing.assert_array_equal(images["center"], wide)  # the processor resizes, as in training


def test_encoded_images_are_decoded():
    image = picture(48, 64)
    request = {**CLIENTS["lerobot"], "observation.images.center": encoded(image)}
    images, _, _ = load_dialect("lerobot").read(request)
    np.testing.assert_array_equal(images["center"], image)
    np.testing.assert_array_equal(decode_image(encoded(image[..., 0])), np.repeat(image[..., :1], 3, axis=2))
    assert decode_image(encoded(image, "JPEG")).shape == image.shape


BAD_IMAGES = {
    "another format": (encoded(picture(8, 8), "GIF"), r"expected the bytes of a JPEG or PNG file, got \d+ other bytes"),
    "a truncated JPEG": (encoded(picture(64, 64), "JPEG")[:-900], r"expected a whole JPEG or PNG.*truncated"),
    "a truncated PNG": (encoded(picture(64, 64))[:-900], r"expected a whole JPEG or PNG.*truncated"),
    "only a PNG header": (encoded(picture(64, 64))[:20], r"expected"),
    "no bytes": (b"", r"expected the bytes of a JPEG or PNG file, got 0 other bytes"),
    "a path": ("/etc/passwd", r"expected an array .* or the bytes of a JPEG or PNG file, got str"),
    "a batch": (np.zeros((1, 4, 4, 3), np.uint8), r"expected .*got \(1, 4, 4, 3\) uint8"),
    "gray": (np.zeros((4, 4), np.uint8), r".*got \(4, 4\) uint8"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), r".*got \(0, 4, 3\) uint8"),
    "integers": (
        np.zeros((4, 4, 3), np.int64),
        r"expected \(H, W, 3\) or \(3, H, W\) uint8 or float.*got \(4, 4, 3\) int64",
    ),
    "floats to 255": (np.full((4, 4, 3), 200.0), r"expected float values in \[0, 1\], got 200 to 200"),
    "NaN": (np.full((4, 4, 3), np.nan, np.float32), r"expected float values in \[0, 1\], got nan"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_named(name):
    value, message = BAD_IMAGES[name]
    with pytest.raises(ValueError, match=r"^observation\.images\.center: " + message):
        load_dialect("lerobot").read({**CLIENTS["lerobot"], "observation.images.center": value})


def test_decompression_bombs_are_refused_by_their_header(monkeypatch):
    """A PNG of 40 kB that announces 400 million pixels: refused without decoding one."""
    bomb = bytearray(encoded(np.zeros((64, 64, 3), np.uint8)))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    messages = ((bytes(bomb), 2**24), (encoded(picture(100, 100)), 9_999))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    for data, limit in messages:
        with pytest.raises(ValueError, match="pixels"):
            decode_image(data, limit)


BAD_REQUESTS = {  # changes to the LIBERO request; None removes
    "wrong key": ({"observation/stat": np.zeros(8)}, r"observation/stat: unknown key.*observation/state"),
    "no state": ({"observation/state": None}, r"observation/state: missing; expected \(8,\) numbers, got \['obs"),
    "wrong camera": ({"observation/top": VIEWS["center"]}, r"observation/top: unknown key; dialect 'libero' expects obs"),
    "a camera less": ({"observation/wrist_image": None}, r"observation/wrist_image: missing \(the left_wrist view\)"),
    "short state": ({"observation/state": np.zeros(7)}, r"observation/state: expected \(8,\) numbers, got shape \(7,\)"),
    "batched state": ({"observation/state": np.zeros((1, 8))}, r"observation/state: expected \(8,\).*\(1, 8\)"),
    "text as state": ({"observation/state": "rest"}, r"observation/state: expected \(8,\) numbers, got str"),
    "bool state": ({"observation/state": np.zeros(8, bool)}, r"observation/state: .*bool"),
    "mixed list": ({"observation/state": [0, 1, "x"]}, r"observation/state: .*list of other things"),
    "NaN state": ({"observation/state": [0] * 7 + [np.nan]}, r"observation/state: expected finite numbers, got nan in dim"),
    "overflows": ({"observation/state": np.full(8, -2e12)}, r"observation/state: expected numbers of at most 1e\+12"),
    "beyond float32": ({"observation/state": np.full(8, 1e300)}, r"observation/state: expected finite.*got 1e\+300"),
    "no prompt": ({"prompt": None}, r"prompt: missing; expected the instruction as text"),
    "empty prompt": ({"prompt": " \n"}, r"prompt: expected an instruction, got an empty text"),
    "long prompt": ({"prompt": "go " * 350_000}, rf"prompt: expected at most {MAX_PROMPT_LENGTH} characters, got 1050000"),
    "bytes prompt": ({"prompt": b"go"}, r"prompt: expected the instruction as text, got bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_named(name):
    changes, message = BAD_REQUESTS[name]
    request = {key: value for key, value in {**CLIENTS["libero"], **changes}.items() if value is not None}
    with pytest.raises(ValueError, match="^" + message):
        load_dialect("libero").read(request)


def test_channels_first_dialect_refuses_channels_last():
    request = {**CLIENTS["aloha"], "images": {"cam_high": VIEWS["center"]}}
    with pytest.raises(ValueError, match=r"^images\.cam_high: expected \(3, H, W\) uint8.*got \(224, 224, 3\) uint8"):
        load_dialect("aloha").read(request)
    with pytest.raises(ValueError, match=r"^images: expected a map, got ndarray"):
        load_dialect("aloha").read({**CLIENTS["aloha"], "images": VIEWS["center"]})


def test_cameras_go_by_the_name_of_the_view_or_their_own():
    dialect = load_dialect("lerobot").for_views(["center", "left_wrist"], {"center": "head"})
    state = {"observation.state": np.zeros(3), "task": "go"}
    for key in ("observation.images.head", "observation.images.center"):
        images, _, _ = dialect.read({**state, key: VIEWS["center"]})
        assert set(images) == {"center"}
    assert "observation.images.head" in dialect.to_request(VIEWS, np.zeros(3), "go")
    with pytest.raises(ValueError, match=r"observation.images.head: missing \(the center view\)"):
        dialect.read({**state, "observation.images.left_wrist": VIEWS["center"]})
    with pytest.raises(ValueError, match=r"observation.images.ceiling: unknown key.*observation.images.head"):
        dialect.read({**state, "observation.images.ceiling": VIEWS["center"]})
    both = {"observation.images.head": VIEWS["center"], "observation.images.center": VIEWS["center"]}
    with pytest.raises(ValueError, match=r"observation.images.center: the center view came twice"):
        dialect.read({**state, **both})
    with pytest.raises(ValueError, match=r"at least one of observation.images.center"):
        load_dialect("lerobot").read(state)


def test_an_instruction_that_comes_twice_is_text_both_times():
    """Comparing an array with a number beyond 64 bits is an OverflowError in numpy."""
    request = {key: value for key, value in CLIENTS["lerobot"].items() if key not in ("task", "prompt")}
    with pytest.raises(ValueError, match="task: expected the instruction as text, got int"):
        load_dialect("lerobot").read({**request, "task": 10**400, "prompt": np.array(False)})
    with pytest.raises(ValueError, match="prompt: expected the instruction as text, got ndarray"):
        load_dialect("lerobot").read({**request, "task": "lift", "prompt": np.array(False)})
    with pytest.raises(ValueError, match="the instruction came twice and differs from task"):
        load_dialect("lerobot").read({**request, "task": "lift", "prompt": "place"})


def test_a_dialect_must_suit_the_model():
    assert set(load_dialect("aloha").for_views(["center", "left_wrist"]).images) == {"center", "left_wrist"}
    with pytest.raises(ValueError, match=r"'libero': expected a model with views \['left_wrist'\]"):
        load_dialect("libero").for_views(["center"])
    with pytest.raises(ValueError, match="fixed keys"):
        load_dialect("libero").for_views(["center", "left_wrist"], {"center": "head"})
    with pytest.raises(ValueError, match=r"expected views out of \['center'\]"):
        load_dialect("lerobot").for_views(["center"], {"top": "head"})


def test_openpis_dialects_know_what_its_clients_do():
    """examples/libero, examples/droid and examples/aloha_sim of openpi: steps between requests, cameras that are sent."""
    known = {name: (load_dialect(name).replan_steps, load_dialect(name).sends) for name in dialect_names()}
    assert known == {"libero": (5, None), "droid": (8, None), "aloha": (10, ("center",)), "lerobot": (None, None)}


def test_a_dialect_of_ones_own_is_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "images: {center: [obs, rgb]}\nstate: [{key: [obs, q], dim: 2}, {key: gripper}]\nprompt: [say]\nimage_layout: [hwc]\n"
    )
    dialect = load_dialect(path)
    request = dialect.to_request(VIEWS, np.arange(5), "go")
    assert sorted(request) == ["gripper", "obs", "say"]
    assert [len(request["obs"]["q"]), len(request["gripper"])] == [2, 3]
    with pytest.raises(ValueError, match=r"state: dialect 'mine' expects dimensions .*got shape \(2,\)"):
        dialect.to_request(VIEWS, np.arange(2), "go")
    with pytest.raises(ValueError, match=r"views.center: dialect 'mine' needs this view"):
        dialect.to_request({}, np.arange(5), "go")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: {}\nstate: []\nprompt: [p]\nimage_layouts: [hwc]\n", r"unknown fields \['image_layouts'\]"),
        ("images: {center: a}\nstate: [{key: s}]\nprompt: [p]\nimage_layout: [wch]\n", "expected hwc and chw"),
        ("images: {center: a}\nprompt: [p]\n", "not a dialect"),
        (
            "images: {center: a}\nstate: [{key: s}]\nprompt: [p]\nreplan_steps: 0\n",
            "replan_steps: expected a number from 1",
        ),
        (
            "images: {center: a}\nstate: [{key: s}]\nprompt: [p]\nsends: [left]\n",
            r"sends: expected views out of \['center'\]",
        ),
        ("1\n", "not a dialect"),
        ("{", "cannot read"),
    ],
)
def test_damaged_dialect_files_are_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dialect(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["liberoo", "../libero", "", "lerobot/../libero"])
def test_unknown_dialects_are_named(name):
    with pytest.raises(ValueError, match=r"dialect: expected one of aloha, droid, lerobot, libero or the path"):
        load_dialect(name)
