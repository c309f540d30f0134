"""SyVLAProcessor names what it refuses: items, batches, statistics, chats, images and what they do not fit."""

import json

import numpy as np
import pytest
from PIL import Image

from syvla.processing import SyVLAProcessor

QUERIES = "<|action_query|>" * 8


def picture(value: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


GOOD = {"images": {"center": picture(1)}, "text": "lift", "state": np.zeros(3), "embodiment": "arm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": {"center": picture(1).astype(np.float32)}},
            r"images\.center: .* uint8, got \(32, 32, 3\) float32",
        ),
        (
            {"images": {"center": np.zeros((3, 32, 32), np.uint8)}},
            r"images\.center: expected .* got \(3, 32, 32\) uint8",
        ),
        ({"images": {"center": np.zeros((32, 32), np.uint8)}}, r"images\.center: .* got \(32, 32\) uint8"),
        ({"images": {"center": np.zeros((0, 32, 3), np.uint8)}}, r"images\.center: .* got \(0, 32, 3\) uint8"),
        (
            {"images": {"center": Image.new("RGB", (0, 32))}},
            r"images\.center: expected an image with pixels, .* \(0, 32\)",
        ),
        ({"images": {"head": picture(1)}}, r"images: unknown views \['head'\]; this checkpoint has \['center'"),
        ({"images": {}}, "images: expected at least one of the views"),
        ({"images": None}, "images: missing"),
        ({"images": [picture(1)] * 4}, "images: expected at most 3 views .* got 4"),
        ({"state": np.zeros(4)}, r"state: expected shape \(3,\) for embodiment 'arm', got \(4,\)"),
        ({"state": np.zeros((1, 3))}, r"state: expected shape \(3,\) .* got \(1, 3\)"),
        ({"state": np.array([0, np.nan, 0])}, "state: expected finite numbers for embodiment 'arm'"),
        ({"state": None}, r"state: missing for embodiment 'arm'; expected shape \(3,\)"),
        ({"embodiment": "spot"}, r"embodiment: expected one of \['arm', 'tabletop'\], got 'spot'; register it"),
        ({"embodiment": None}, "embodiment: expected one of .* got None"),
        ({"text": "lift <|im_end|> it"}, r"text: holds the control tokens \['<\|im_end\|>'\]"),
        ({"text": None}, "text: expected a string, got NoneType"),
        ({"thought": "a <|action_query|>"}, "thought: holds the control tokens"),
        ({"text": "word " * 2000}, "sample 0: .* tokens .*exceed max_length=1024"),
        ({"actions": np.zeros((9, 2))}, "actions: expected 1 to chunk_size=8 steps, got 9"),
        ({"actions": np.zeros((0, 2))}, "actions: expected 1 to chunk_size=8 steps, got 0"),
        ({"actions": np.zeros((8, 3))}, r"action: expected shape \(T, 2\) for embodiment 'arm', got \(8, 3\)"),
        ({"actions": np.full((8, 2), np.inf)}, "action: expected finite numbers"),
        (
            {"actions": np.zeros((8, 2)), "action_is_pad": np.zeros(7)},
            r"action_is_pad: expected shape \(8,\), got \(7,\)",
        ),
    ],
)
def test_bad_input_is_named_with_what_was_expected(tiny_processor, changes, message):
    tiny_processor(**GOOD)
    with pytest.raises(ValueError, match=message):
        tiny_processor(**{**GOOD, **changes})


def test_a_prompt_leaves_room_for_the_queries_that_the_model_appends(tiny_processor, make_chat):
    """Acting appends them after the processor's work; in training they are in the text. Chats have none."""
    length = tiny_processor(**GOOD)["input_ids"].shape[1]
    tiny_processor.max_length = length + 8
    tiny_processor(**GOOD)
    assert tiny_processor(**GOOD, actions=np.zeros((8, 2)))["input_ids"].shape[1] == length + 8
    tiny_processor.max_length = length + 7
    with pytest.raises(
        ValueError, match=f"sample 0: {length} tokens with the 8 query tokens to come exceed max_length"
    ):
        tiny_processor(**GOOD)
    with pytest.raises(ValueError, match=f"sample 0: {length + 8} tokens exceed max_length"):
        tiny_processor(**GOOD, actions=np.zeros((8, 2)))
    tiny_processor.max_length = 1024
    tiny_processor.max_length = tiny_processor.collate([make_chat(1)])["input_ids"].shape[1]
    tiny_processor.collate([make_chat(1)])


OLD_FIELDS = {
    "embodiments": {},
    "views": ["center", "left_wrist", "right_wrist"],
    "num_query_tokens": 20,
    "chunk_size": 50,
    "max_length": 4096,
    "query_token": "<|action_query|>",
}


@pytest.mark.parametrize("field", OLD_FIELDS)
def test_a_processor_saved_without_a_field_gets_the_documented_default(tiny_processor, tmp_path, field):
    tiny_processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in saved.items() if key != field}))
    assert getattr(SyVLAProcessor.from_pretrained(tmp_path), field) == OLD_FIELDS[field]


def test_videos_are_refused_in_chats_too(tiny_processor):
    video = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(Exception, match="SyVLA reads text and images"):
        tiny_processor.apply_chat_template(video, tokenize=False)
    with pytest.raises(Exception, match="SyVLA reads text and images"):
        tiny_processor.collate([{"messages": [*video, {"role": "assistant", "content": "no"}], "images": []}])


def test_columns_of_a_batch_must_agree(tiny_processor):
    good = {"text": ["a", "b"], "images": [{"center": picture(1)}] * 2, "state": np.zeros((2, 3)), "embodiment": "arm"}
    tiny_processor(**good)
    for changes, message in (
        ({"state": np.zeros((3, 3))}, "state: expected one entry for each of the 2 texts, got 3 entries"),
        ({"images": {"center": picture(1)}}, "images: expected one entry for each of the 2 texts, got dict"),
        ({"thought": "go"}, "thought: expected one entry for each of the 2 texts, got str"),
        ({"embodiment": ["arm"]}, "embodiment: expected one name or 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_processor(**{**good, **changes})


def test_missing_statistics_are_named_when_the_robot_is_registered(tiny_processor):
    one = {"mean": [0.0], "std": [1.0]}
    for statistics, modes, message in (
        ({"state": one}, None, r"statistics\.action: missing for embodiment 'new'"),
        ({"state": {}, "action": one}, None, r"statistics\.state: missing for embodiment 'new'"),
        ({"state": one, "action": {"mean": [0.0]}}, None, "mode 'mean_std' needs 'std'"),
        ({"state": one, "action": one}, {"action": "quantile"}, "mode 'quantile' needs 'q01'"),
        (
            {"state": one, "action": one},
            {"state": "zscore"},
            r"normalization\.state: expected one of mean_std, .* 'zscore'",
        ),
        ({"state": one, "action": {"mean": [0.0, 0.0], "std": [1.0]}}, None, "expected equal lengths"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_processor.set_embodiment("new", statistics, modes)
        assert "new" not in tiny_processor.embodiments


def test_chats_that_do_not_fit_are_refused(tiny_processor, make_chat):
    chat = make_chat(1)
    for changes, message in (
        ({"images": []}, "messages: hold 1 image entries, got 0 images"),
        ({"images": chat["images"] * 2}, "messages: hold 1 image entries, got 2 images"),
        ({"images": [np.zeros((3, 8, 8), np.float32)]}, r"images\[0\]: expected a PIL image"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_processor.collate([{**chat, **changes}])


@pytest.mark.parametrize("token", ["<|im_end|>", "<|action_query|>", "<|im_start|>assistant\n", "<|image_pad|>"])
def test_control_tokens_in_a_chat_cannot_move_the_loss(tiny_processor, make_chat, token):
    """A web text that spells a control token would otherwise end its turn, pose as an answer or as a robot sample."""
    with pytest.raises(ValueError, match=r"messages\[0\]: holds the control tokens"):
        tiny_processor.collate([make_chat(1, question=f"a {token} b")])
    with pytest.raises(ValueError, match=r"messages\[1\]: holds the control tokens"):
        tiny_processor.collate([make_chat(1, answer=f"a {token} b")])


def test_plain_calls_check_their_images(tiny_processor):
    prompt = "<|vision_start|><|image_pad|><|vision_end|>What?"
    for images, message in (
        (None, "the text holds 1 image placeholders, got 0 images"),
        ([picture(1)] * 2, "the text holds 1 image placeholders, got 2 images"),
        ({"center": picture(1)}, "a dict of views is a robot's observation"),
        ([picture(1).astype(float)], r"images\[0\]: expected values of 0..255, .* floats of at most 1"),
        ([picture(1)[..., 0]], r"images\[0\]: expected a PIL image, a path, .* ndarray of shape \(32, 32\)"),
        ([np.zeros((3, 8, 3), np.uint8)], r"images\[0\]: shape \(3, 8, 3\) may have its channels first or last"),
        ([Image.new("RGB", (0, 8))], r"images\[0\]: expected an image with pixels"),
        ([[picture(1)], picture(1)], "images: expected images, or one list of images for each text; got a mixture"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny_processor(text=prompt, images=images)
    with pytest.raises(ValueError, match="videos: SyVLA reads images only"):
        tiny_processor(text="What?", videos=[np.zeros((2, 8, 8, 3))])


def test_decoding_needs_enough_dimensions(tiny_processor):
    with pytest.raises(ValueError, match=r"actions: expected at least 14 dimensions, got shape \(8, 2\)"):
        tiny_processor.decode_actions(np.zeros((8, 2)), "tabletop")
    with pytest.raises(ValueError, match="embodiment: expected one of"):
        tiny_processor.decode_actions(np.zeros((8, 14)))
