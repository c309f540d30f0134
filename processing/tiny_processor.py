"""A complete SyVLAProcessor of a few hundred tokens, built without any download, for tests and the demo."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, cast

from syvla.modeling_syvla.configuration_syvla import TINY_SPECIAL_TOKENS, TINY_VOCABULARY_SIZE, SyVLAConfig

from .processing_syvla import SyVLAProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_tiny_processor(config: SyVLAConfig | None = None) -> SyVLAProcessor:
    """Processor for `SyVLAConfig.tiny()`: byte-level Qwen tokenizer and 32-pixel image processors.

    Embodiments are left to `set_embodiment`.
    """
    from transformers import Qwen2VLImageProcessorPil, SiglipImageProcessorPil

    config = config or SyVLAConfig.tiny()
    vision = config.vlm_config.vision_config
    side = config.expert_image_size
    pixels = side * side
    return SyVLAProcessor(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": pixels, "longest_edge": 4 * pixels},
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        ),
        tokenizer=build_tiny_tokenizer(),
        expert_image_processor=SiglipImageProcessorPil(size={"height": side, "width": side}),
        views=config.views,
        num_query_tokens=config.num_query_tokens,
        chunk_size=config.chunk_size,
        max_length=1024,
    )


def build_tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE with Qwen's pre-tokenizer; lossless on any text.

    The special tokens take the ids that `SyVLAConfig.tiny()` expects.
    """
    import json

    from tokenizers import Regex as TokenizerRegex
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(TokenizerRegex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCABULARY_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    qwen = Qwen2Tokenizer(vocab=model["vocab"], merges=cast("list[str]", merges))  # pairs, whatever the annotation says
    return _with_special_tokens(qwen)


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    from transformers.tokenization_utils_base import AddedToken

    for index, token in enumerate(TINY_SPECIAL_TOKENS):
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
        got = tokenizer.convert_tokens_to_ids(token)
        if got != TINY_VOCABULARY_SIZE + index:
            raise RuntimeError(f"tiny tokenizer: expected {token} at id {TINY_VOCABULARY_SIZE + index}, got {got}")
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tokenizer


def _corpus() -> list[str]:
    """The demo's own vocabulary, so that its prompts are short."""
    colors = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
    things = ("cube", "bar", "pad", "ball", "block")
    verbs = ("lift", "reach", "grasp", "raise", "place", "put", "move", "release", "hold", "carry", "lower")
    arms = ("left arm", "right arm", "both arms")
    lines = [
        "system\nYou are a helpful assistant.\n",
        "user\n",
        "assistant\n",
        "center view: \nleft wrist view: \nright wrist view: \n",
    ]
    lines *= 50
    lines += [f"{v} the {c} {t} with the {a}" for v, c, t, a in product(verbs, colors, things, arms)]
    lines += [
        f"How many {c} {t}s are there on the table? Where is it? Point at the {c} {t}."
        for c, t in product(colors, things)
    ]
    lines += [
        "place it on the marked pad from the table to the pad with both arms and the grippers open, then close"
    ] * 20
    lines += [
        "what which color object robot gripper camera image picture left right above below near far between front behind"
    ] * 20
    lines += [
        "first second third then next now finished done start stop open close push pull turn slide drawer door button"
    ] * 20
    lines += [f"{n} yes no none one two three four five six (x, y) = ({n}, {n + 7})" for n in range(100)]
    return lines
