"""The tiny processor: built offline, lossless, with the ids that the tiny model expects."""

import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.modeling_syvla.configuration_syvla import TINY_SPECIAL_TOKENS, TINY_TOKEN_IDS, TINY_VOCABULARY_SIZE
from syvla.processing.tiny_processor import build_tiny_processor, build_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tiny_tokenizer()


def test_special_tokens_have_the_ids_of_the_tiny_config(tokenizer):
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in TINY_SPECIAL_TOKENS} == TINY_TOKEN_IDS
    config = SyVLAConfig.tiny()
    assert config.vlm_config.image_token_id == TINY_TOKEN_IDS["<|image_pad|>"]
    assert config.query_token_id == TINY_TOKEN_IDS["<|action_query|>"]
    text = config.get_text_config()
    assert text.eos_token_id == tokenizer.eos_token_id == TINY_TOKEN_IDS["<|im_end|>"]
    assert text.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == TINY_VOCABULARY_SIZE + len(TINY_SPECIAL_TOKENS) <= text.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "lift the red cube",
        "",
        "  two  spaces\n\nand\tlines ",
        "Größe 3,5 µm",
        "抓住红色方块",
        "🤖 ok",
        "x<|im_end|>y",
        "\x00\x7f",
    ],
)
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_every_byte_has_a_token(tokenizer):
    for code in range(256):
        text = chr(code) if code < 128 else bytes([0xC3 if code >= 192 else 0xC2, 0x80 | code & 0x3F]).decode()
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_building_it_twice_gives_the_same_vocabulary(tokenizer):
    """A checkpoint's embedding rows must mean the same tokens on every machine."""
    assert build_tiny_tokenizer().get_vocab() == tokenizer.get_vocab()
    sample = "How many red cubes are there? Lift the blue bar with both arms; then (3, 10)."
    assert build_tiny_tokenizer()(sample)["input_ids"] == tokenizer(sample)["input_ids"]


def test_demo_prompts_are_short(tokenizer):
    for text in ("lift the red cube with the left arm", "place the green cube on the marked pad"):
        assert len(tokenizer(text)["input_ids"]) <= 2 * len(text.split()), text


def test_it_fits_the_model_it_is_built_for():
    config = SyVLAConfig.tiny(chunk_size=5, num_query_tokens=3, views=["center", "left_wrist"])
    processor = build_tiny_processor(config)
    statistics = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("tabletop", {"state": statistics, "action": statistics})
    assert processor.disagreements(config) == []
    batch = processor(
        images={"center": np.zeros((40, 60, 3), np.uint8)},
        text="lift",
        state=np.zeros(14),
        actions=np.zeros((5, 14)),
    )
    assert batch["expert_pixel_values"].shape == (1, 2, 3, config.expert_image_size, config.expert_image_size)
    with torch.no_grad():
        assert SyVLAModel(config).eval()(**batch).loss.isfinite()


def test_disagreements_with_a_model_are_all_listed():
    processor = build_tiny_processor()
    statistics = {"mean": np.zeros(14), "std": np.ones(14)}
    processor.set_embodiment("other", {"state": statistics, "action": statistics})
    processor.set_embodiment("tabletop", {"state": {"mean": [0.0], "std": [1.0]}, "action": statistics})
    found = processor.disagreements(SyVLAConfig.tiny(chunk_size=9, num_query_tokens=7, views=["center"]))
    for start in (
        "num_query_tokens: the processor has 8, the model 7",
        "chunk_size:",
        "views:",
        "embodiments.other: unk",
    ):
        assert any(problem.startswith(start) for problem in found), start
    assert any(problem.startswith("embodiments.tabletop: the processor has") for problem in found)
    assert len(found) == 5
