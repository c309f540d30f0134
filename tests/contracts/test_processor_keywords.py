"""Every keyword of a processor's call acts as Qwen2.5-VL's processor does on the same input, or is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_processor import qwen_processor
from transformers import AutoProcessor
from transformers.image_utils import PILImageResampling

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def picture(seed: int, height: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def qwen(tiny_processor):
    return qwen_processor(tiny_processor)


def equal(ours, theirs) -> None:
    """The same keys with the same values in the same containers."""
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        got = ours[key]
        assert type(got) is type(value), key
        if isinstance(value, torch.Tensor):
            assert got.dtype == value.dtype, key
        if isinstance(value, (torch.Tensor, np.ndarray)):
            np.testing.assert_array_equal(np.asarray(got), np.asarray(value), err_msg=key)
        else:
            assert str(got) == str(value), key


TEXTS = ["lift it", "put the green bar on the pad, please"]
TEXT_CASES = {
    "nothing": {},
    "padding": {"padding": True},
    "no padding": {"padding": False},
    "padding=longest": {"padding": "longest", "return_tensors": "pt"},
    "padding=max_length": {"padding": "max_length", "max_length": 60, "return_tensors": "pt"},
    "padding=do_not_pad": {"padding": "do_not_pad"},
    "padding_side=left": {"padding": True, "padding_side": "left"},
    "padding_side=right": {"padding": True, "padding_side": "right"},
    "truncation": {"truncation": True, "max_length": 4},
    "truncation=longest_first": {"truncation": "longest_first", "max_length": 4},
    "truncation=only_first": {"truncation": "only_first", "max_length": 3},
    "no truncation": {"truncation": False},
    "max_length": {"truncation": True, "max_length": 5, "padding": "max_length"},
    "pad_to_multiple_of": {"padding": True, "pad_to_multiple_of": 16, "return_tensors": "np"},
    "return_tensors=pt": {"padding": True, "return_tensors": "pt"},
    "return_tensors=np": {"padding": True, "return_tensors": "np"},
    "return_tensors=None": {"return_tensors": None},
    "return_mm_token_type_ids": {"return_mm_token_type_ids": True},
    "no return_mm_token_type_ids": {"return_mm_token_type_ids": False},
    "add_special_tokens": {"add_special_tokens": True},
    "no add_special_tokens": {"add_special_tokens": False},
    "return_attention_mask": {"return_attention_mask": False},
    "return_token_type_ids": {"return_token_type_ids": True},
    "return_special_tokens_mask": {"return_special_tokens_mask": True},
    "return_offsets_mapping": {"return_offsets_mapping": True},
    "return_offsets_mapping as tensors": {"return_offsets_mapping": True, "padding": True, "return_tensors": "pt"},
    "return_length": {"return_length": True},
    "verbose": {"verbose": False},
    "text_pair": {"text_pair": ["now", "then"]},
    "text_target": {"text_target": ["now", "then"]},
    "text_kwargs": {"text_kwargs": {"padding": "max_length", "max_length": 50, "return_tensors": "pt"}},
    "common_kwargs": {"common_kwargs": {"return_tensors": "pt"}, "text_kwargs": {"padding": True}},
    "a keyword goes before common_kwargs": {
        "common_kwargs": {"return_tensors": "np"}, "return_tensors": "pt", "padding": True
    },
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT_CASES)
def test_a_text_keyword_acts_as_qwens(tiny_processor, qwen, case):
    equal(tiny_processor(text=list(TEXTS), **TEXT_CASES[case]), qwen(text=list(TEXTS), **TEXT_CASES[case]))


def test_overflowing_tokens_are_those_of_qwen(tiny_processor, qwen):
    """One text longer than the limit becomes rows; both processors refuse what then does not match the texts."""
    keywords = {"truncation": True, "max_length": 8, "stride": 2, "return_overflowing_tokens": True}
    for processor in (tiny_processor, qwen):
        with pytest.raises(ValueError):
            processor(text=["put the green bar on the pad, please"], **keywords)
    equal(tiny_processor(text=["lift"], **keywords), qwen(text=["lift"], **keywords))


IMAGE_CASES = {
    "nothing": {},
    "max_pixels": {"max_pixels": 1024, "min_pixels": 256},
    "min_pixels": {"min_pixels": 64 * 64, "max_pixels": 128 * 128},
    "size": {"size": {"shortest_edge": 1024, "longest_edge": 2048}},
    "no do_resize": {"do_resize": False},
    "resample": {"resample": PILImageResampling.NEAREST},
    "no do_rescale": {"do_rescale": False},
    "rescale_factor": {"rescale_factor": 1 / 127.5},
    "no do_normalize": {"do_normalize": False},
    "image_mean": {"image_mean": [0.1, 0.2, 0.3]},
    "image_std": {"image_std": [0.5, 0.6, 0.7]},
    "do_convert_rgb": {"do_convert_rgb": True},
    "input_data_format": {"input_data_format": "channels_last"},
    "disable_grouping": {"disable_grouping": True},
    "device": {"device": "cpu"},
    "images_kwargs": {"images_kwargs": {"do_resize": False, "do_rescale": False}},
    "images_kwargs beside a keyword of its own": {"images_kwargs": {"do_resize": False}, "do_normalize": False},
    "common_kwargs": {"common_kwargs": {"return_tensors": "pt"}},
    "return_tensors=np": {"return_tensors": "np"},
    "return_tensors=pt": {"return_tensors": "pt"},
}


@pytest.mark.filterwarnings("ignore:Passing `min_pixels`")
@pytest.mark.parametrize("case", IMAGE_CASES)
def test_an_image_keyword_acts_as_qwens(tiny_processor, qwen, case):
    side = 64 if case == "no do_resize" or "images_kwargs" in case else 40  # without resizing, sides are whole patches
    call = {"text": [f"{PICTURE} or {PICTURE}?"], "images": [picture(1, side), picture(2, side, 32)]}
    if case == "images_kwargs beside a keyword of its own":  # transformers 5.4 forgets the flat one
        theirs = qwen(**call, images_kwargs={"do_resize": False, "do_normalize": False})
    else:
        theirs = qwen(**call, **IMAGE_CASES[case])
    equal(tiny_processor(**call, **IMAGE_CASES[case]), theirs)


def test_every_image_keyword_that_acts_changes_the_result(tiny_processor):
    """The cases above would also be equal if neither processor did anything."""
    call = {
        "text": [f"{PICTURE} or {PICTURE}?"],
        "images": [picture(1, 64), picture(2, 64, 32)],
        "return_tensors": "pt",
    }
    plain = tiny_processor(**call)
    for case in (
        "max_pixels",
        "min_pixels",
        "no do_rescale",
        "rescale_factor",
        "no do_normalize",
        "image_mean",
        "image_std",
    ):
        changed = tiny_processor(**call, **IMAGE_CASES[case])
        assert not torch.equal(plain["pixel_values"], changed["pixel_values"]), case
    small = tiny_processor(**call, **IMAGE_CASES["max_pixels"])
    assert (small["input_ids"] == tiny_processor.image_token_id).sum() < plain["mm_token_type_ids"].sum()


@pytest.mark.parametrize(
    "name", ["do_center_crop", "do_pad", "crop_size", "pad_size", "image_seq_length", "data_format"]
)
def test_an_image_keyword_that_qwens_processor_forgets_is_refused(tiny_processor, qwen, name):
    values = {
        "crop_size": 16,
        "pad_size": {"height": 96, "width": 96},
        "image_seq_length": 7,
        "data_format": "channels_last",
    }
    value = values.get(name, True)
    call = {"text": PICTURE, "images": [picture(1)]}
    given = {name: value, **({"crop_size": 16} if name == "do_center_crop" else {})}
    equal(qwen(**call, **given), qwen(**call))
    with pytest.raises(ValueError, match=f"{name}: Qwen2VLImageProcessorPil does not act on it"):
        tiny_processor(**call, **{name: value})


@pytest.mark.parametrize("name", ["patch_size", "merge_size", "temporal_patch_size"])
def test_patches_are_those_that_the_model_was_trained_with(tiny_processor, name):
    trained = getattr(tiny_processor.image_processor, name)
    call = {"text": PICTURE, "images": [picture(1)]}
    equal(tiny_processor(**call, **{name: trained}), tiny_processor(**call))
    with pytest.raises(ValueError, match=f"{name}: the model was trained with {trained}, got {2 * trained}"):
        tiny_processor(**call, **{name: 2 * trained})


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"paddding": True}, "processor: unexpected keyword 'paddding'; did you mean 'padding'"),
        ({"max_lenght": 3}, "unexpected keyword 'max_lenght'; did you mean 'max_length'"),
        ({"maxpixels": 3}, "unexpected keyword 'maxpixels'; did you mean 'max_pixels'"),
        ({"text_kwarg": {}}, "unexpected keyword 'text_kwarg'; did you mean 'text_kwargs'"),
        ({"text_kwargs": {"paddin": True}}, "text_kwargs: unexpected keyword 'paddin'; did you mean 'padding'"),
        ({"text_kwargs": {"max_pixels": 9}}, "text_kwargs: unexpected keyword 'max_pixels'"),
        (
            {"images_kwargs": {"do_resise": True}},
            "images_kwargs: unexpected keyword 'do_resise'; did you mean 'do_resize'",
        ),
        ({"images_kwargs": {"padding": True}}, "images_kwargs: unexpected keyword 'padding'"),
        ({"common_kwargs": {"return_tensor": "pt"}}, "common_kwargs: unexpected keyword 'return_tensor'; did you mean"),
        ({"zzz": 1}, "unexpected keyword 'zzz'; expected one of .*padding"),
    ],
)
def test_an_unknown_keyword_is_named_with_the_nearest_known(tiny_processor, keywords, message):
    robot = {"images": picture(1), "state": np.zeros(3), "embodiment": "arm"}
    for call in ({"text": "lift"}, {"text": "lift", **robot}):
        with pytest.raises(TypeError, match=message):
            tiny_processor(**call, **keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"padding": True, "text_kwargs": {"padding": False}}, "padding: passed two times, in text_kwargs and as"),
        ({"do_resize": True, "images_kwargs": {"do_resize": True}}, "do_resize: passed two times, in images_kwargs"),
        ({"return_tensors": "pt", "text_kwargs": {"return_tensors": "pt"}}, "return_tensors: passed two times"),
        ({"return_mm_token_type_ids": True, "text_kwargs": {"return_mm_token_type_ids": True}}, "passed two times"),
        ({"videos": [np.zeros((2, 8, 8, 3))]}, "videos: SyVLA reads images only; pass single frames"),
        ({"videos_kwargs": {"fps": 2}}, "videos_kwargs: SyVLA reads images only"),
        ({"fps": 2}, "fps: SyVLA reads images only"),
        ({"num_frames": 2}, "num_frames: SyVLA reads images only"),
        ({"audio": [np.zeros(8)]}, "audio: SyVLA reads images only"),
        ({"audio_kwargs": {"sampling_rate": 2}}, "audio_kwargs: SyVLA reads images only"),
        ({"sampling_rate": 2}, "sampling_rate: SyVLA reads images only"),
        ({"thought": "go"}, "thought: is a robot's; pass its state="),
        ({"action_is_pad": np.zeros(8, bool)}, "action_is_pad: is a robot's"),
    ],
)
def test_a_keyword_that_cannot_act_is_refused(tiny_processor, keywords, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor(text="lift", **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {"padding": 3.5},
        {"max_length": "long"},
        {"truncation": 7},
        {"return_tensors": "tf"},
        {"padding_side": "top", "padding": True},
    ],
)
def test_a_value_that_qwens_processor_refuses_is_refused(tiny_processor, qwen, keywords):
    for processor in (qwen, tiny_processor):
        with pytest.raises(Exception, match=f"(?i){next(iter(keywords))}|tensor|direction"):
            processor(text=list(TEXTS), **keywords)


def test_a_truncation_that_cuts_an_image_is_refused_as_by_qwen(tiny_processor, qwen):
    call = {"text": f"{PICTURE}What is it?", "images": [picture(1)], "truncation": True}
    for processor in (qwen, tiny_processor):
        with pytest.raises(ValueError, match="truncation"):
            processor(**call, max_length=4)
    with pytest.raises(
        ValueError, match=r"cuts image tokens, of which the texts need \[\d+\] and \[\d\] would be left"
    ):
        tiny_processor(**call, max_length=4)
    length = len(tiny_processor(**call)["input_ids"][0])
    equal(tiny_processor(**call, max_length=length - 3), qwen(**call, max_length=length - 3))


def test_what_does_not_fit_the_model_is_refused_unless_truncated(tiny_processor):
    tiny_processor.max_length = 8
    with pytest.raises(ValueError, match=r"sample 1: \d+ tokens exceed max_length=8; .* pass truncation=True"):
        tiny_processor(text=list(TEXTS))
    assert [len(row) for row in tiny_processor(text=list(TEXTS), truncation=True, max_length=8)["input_ids"]][1] == 8


# ---------------------------------------------------------------- padding side


def test_the_tokenizer_says_where_texts_are_padded(tiny_processor, tmp_path):
    assert tiny_processor(text=list(TEXTS), padding=True)["attention_mask"][0][0] == 0, (
        "left: generation goes on at the right"
    )
    tiny_processor.tokenizer.padding_side = "right"
    assert tiny_processor(text=list(TEXTS), padding=True)["attention_mask"][0][0] == 1
    tiny_processor.tokenizer.padding_side = "left"
    tiny_processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.padding_side == "left"
    loaded = AutoProcessor.from_pretrained(tmp_path, padding_side="right")
    assert loaded.tokenizer.padding_side == "right"
    assert loaded(text=list(TEXTS), padding=True)["attention_mask"][0][0] == 1


# ---------------------------------------------------------------- robots


def robot(processor, **changes):
    texts = ["lift", "put the green bar on the pad, please"]
    call = {"text": texts, "state": np.zeros((2, 3)), "embodiment": "arm", "images": [{"center": picture(1)}] * 2}
    return processor(**{**call, **changes})


def test_padding_of_robot_items(tiny_processor):
    plain = robot(tiny_processor)
    width = plain["input_ids"].shape[1]
    for same in ({"padding": True}, {"padding": "longest"}, {"padding_side": "left"}, {"truncation": True},
                 {"max_length": width + 8}, {"return_tensors": "pt"}, {"return_tensors": None}):  # fmt: skip
        equal(robot(tiny_processor, **same), plain)
    assert robot(tiny_processor, padding="max_length", max_length=200)["input_ids"].shape == (2, 200)
    tiny_processor.max_length = 300
    assert robot(tiny_processor, padding="max_length")["input_ids"].shape == (2, 300)
    wide = robot(tiny_processor, pad_to_multiple_of=64)["input_ids"].shape[1]
    assert wide % 64 == 0
    assert width <= wide < width + 64
    right = robot(tiny_processor, padding_side="right")
    assert right["attention_mask"][0, 0] == 1
    assert plain["attention_mask"][0, 0] == 0
    with pytest.raises(ValueError, match=r"padding: sequences of \[\d+, \d+\] tokens make no batch; pass padding=True"):
        robot(tiny_processor, padding=False)
    alike = robot(tiny_processor, padding=False, text=["lift", "lift"])
    assert alike["attention_mask"].all()
    for key, value in robot(tiny_processor, return_tensors="np").items():
        assert isinstance(value, np.ndarray), key
        np.testing.assert_array_equal(value, plain[key].numpy(), err_msg=key)


def test_a_truncation_that_would_cut_a_robots_item_is_refused(tiny_processor):
    """Its images, its instruction and its query tokens are all acted on."""
    for keywords in ({"truncation": True, "max_length": 16}, {"max_length": 16}):
        with pytest.raises(
            ValueError, match=r"sample 0: \d+ tokens with the 8 query tokens to come exceed max_length=16; "
        ):
            robot(tiny_processor, **keywords)
    width = robot(tiny_processor, actions=np.zeros((2, 8, 2)))["input_ids"].shape[1]
    robot(tiny_processor, actions=np.zeros((2, 8, 2)), truncation=True, max_length=width)
    with pytest.raises(ValueError, match="truncation would cut what the model acts on; shorten"):
        robot(tiny_processor, actions=np.zeros((2, 8, 2)), truncation=True, max_length=width - 1)


@pytest.mark.filterwarnings("ignore:Passing `min_pixels`")
def test_sizes_of_a_robots_images_act_on_the_vlm_alone(tiny_processor):
    plain = robot(tiny_processor)
    for keywords in (
        {"max_pixels": 1024, "min_pixels": 256},
        {"size": {"shortest_edge": 256, "longest_edge": 1024}},
        {"images_kwargs": {"size": {"shortest_edge": 256, "longest_edge": 1024}}},
    ):
        small = robot(tiny_processor, **keywords)
        assert small["image_grid_thw"].prod(-1).sum() < plain["image_grid_thw"].prod(-1).sum()
        assert small["mm_token_type_ids"].sum() * 4 == small["image_grid_thw"].prod(-1).sum(), "text and images agree"
        assert torch.equal(small["expert_pixel_values"], plain["expert_pixel_values"])
    chat = tiny_processor(
        text=[PICTURE] * 2, images=[picture(1)] * 2, max_pixels=1024, min_pixels=256, return_tensors="pt"
    )
    assert torch.equal(robot(tiny_processor, max_pixels=1024, min_pixels=256)["pixel_values"], chat["pixel_values"])


@pytest.mark.parametrize(
    "keywords",
    [{"do_rescale": False}, {"image_mean": [0.0] * 3}, {"do_normalize": True}, {"input_data_format": "channels_first"},
     {"return_mm_token_type_ids": False}, {"return_attention_mask": False}, {"add_special_tokens": False},
     {"return_offsets_mapping": True}, {"text_pair": "and"}],
    ids=lambda keywords: next(iter(keywords)),
)  # fmt: skip
def test_a_keyword_without_meaning_for_robots_is_refused(tiny_processor, keywords):
    with pytest.raises(ValueError, match=f"{next(iter(keywords))}: not for robot items"):
        robot(tiny_processor, **keywords)


def test_a_pil_image_and_an_array_of_a_robot_are_the_same(tiny_processor):
    """The VLM's image keywords do not change how a robot's images are read."""
    arrays, pil = [{"center": picture(1)}] * 2, [{"center": Image.fromarray(picture(1))}] * 2
    keywords = {"size": {"shortest_edge": 256, "longest_edge": 1024}}
    equal(robot(tiny_processor, images=arrays, **keywords), robot(tiny_processor, images=pil, **keywords))
