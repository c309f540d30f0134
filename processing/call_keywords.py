"""Keywords of a processor's call: each acts, or is refused by name. Ships with checkpoints."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.processing_utils import ProcessingKwargs

# Keywords that no subprocessor reads: the processor itself acts on them.
OWN = ("return_mm_token_type_ids", "return_text_replacement_offsets")

# Keywords of every image processor that those of the Qwen-VL family accept and forget.
IMAGE_WITHOUT_EFFECT = (
    "crop_size",
    "data_format",
    "default_to_square",
    "do_center_crop",
    "do_pad",
    "image_seq_length",
    "pad_size",
)
# The model's own sizes: other patches than it was trained on would be read as noise.
IMAGE_OF_THE_MODEL = ("merge_size", "patch_size", "temporal_patch_size")

# What a call with robot items may change. The rest would change what the model was trained on, or has no meaning there.
ROBOT_TEXT = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "return_tensors")
ROBOT_IMAGE = ("do_resize", "size", "min_pixels", "max_pixels", "resample", "device", "disable_grouping")


# Keywords of a tokenizer's `from_pretrained`, and those of a model's that pipelines hand to the processor as well.
_OF_TOKENIZERS = (
    "add_prefix_space", "additional_special_tokens", "backend", "clean_up_tokenization_spaces", "extra_special_tokens",
    "model_max_length", "padding_side", "split_special_tokens", "tokenizer_type", "truncation_side", "use_fast",
)  # fmt: skip
_OF_MODELS = (
    "attn_implementation", "cache_dir", "code_revision", "config", "device_map", "dtype", "force_download",
    "local_files_only", "low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder", "quantization_config",
    "return_unused_kwargs", "revision", "subfolder", "token", "torch_dtype", "trust_remote_code", "use_safetensors",
)  # fmt: skip


class SyVLAProcessorKwargs(ProcessingKwargs, total=False):
    """Keywords as `Qwen2_5_VLProcessor` takes them, with its defaults."""

    _defaults = {"text_kwargs": {"padding": False}}  # type: ignore[misc]  # no TypedDict entry: transformers reads it


def require_known(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise TypeError for the first name of `given` that is not in `known`; it names the nearest one."""
    known = sorted(set(known))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise TypeError(f"{what}: unexpected keyword {name!r}; {hint}")


class CallKeywords:
    """The keywords of one call, sorted by whom they are for.

    Args:
        processor: The processor that is called.
        given: Keywords as passed: flat, or in `text_kwargs`, `images_kwargs` and `common_kwargs`, as `ProcessorMixin`
            takes them. A flat one goes before one in `common_kwargs`.

    Attributes:
        text: Passed keywords of the tokenizer.
        images: Passed keywords of the image processor.
        own: Passed keywords of the processor itself, out of `OWN`.

    Raises:
        TypeError: If a keyword is unknown.
        ValueError: If a keyword is passed twice, has no effect, or is for videos or audio.
    """

    def __init__(self, processor: Any, given: Mapping[str, Any]):
        names = keyword_names(processor)
        given = dict(given)
        groups = {name: dict(given.pop(name, None) or {}) for name in ("text_kwargs", "images_kwargs", "common_kwargs")}
        refuse_other_media(given)
        require_known(given, [*names["text"], *names["images"], *OWN, *groups], "processor")
        require_known(groups["text_kwargs"], [*names["text"], *OWN], "text_kwargs")
        require_known(groups["images_kwargs"], names["images"], "images_kwargs")
        require_known(groups["common_kwargs"], [*names["text"], *names["images"]], "common_kwargs")
        for group in ("text_kwargs", "images_kwargs"):
            twice = [name for name in groups[group] if name in given]
            if twice:
                raise ValueError(f"{twice[0]}: passed two times, in {group} and as a keyword of its own; pass it once")
        flat = {**groups["common_kwargs"], **given}
        self.text = {k: v for k, v in flat.items() if k in names["text"] and k not in OWN}
        self.text.update({k: v for k, v in groups["text_kwargs"].items() if k not in OWN})
        self.images = {k: v for k, v in flat.items() if k in names["images"]} | groups["images_kwargs"]
        self.own = {k: v for k, v in {**groups["text_kwargs"], **flat}.items() if k in OWN}
        if self.text.get("padding_side") not in (None, "left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {self.text['padding_side']!r}")
        _refuse_without_effect(self.images, processor.image_processor)

    def merged(self, processor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords for the tokenizer and for the image processor, with the defaults, checked by transformers."""
        merged = processor._merge_kwargs(
            SyVLAProcessorKwargs,
            tokenizer_init_kwargs=processor.tokenizer.init_kwargs,
            text_kwargs=self.text,
            images_kwargs=self.images,
        )
        return {k: v for k, v in merged["text_kwargs"].items() if k not in OWN}, merged["images_kwargs"]

    def given_text(self) -> dict[str, Any]:
        """Keywords of `ROBOT_TEXT` that were given a value, `return_tensors` apart."""
        return {k: v for k, v in self.text.items() if k in ROBOT_TEXT and k != "return_tensors" and v is not None}

    def given_images(self) -> dict[str, Any]:
        """Keywords of `ROBOT_IMAGE` that were given a value."""
        return {k: v for k, v in self.images.items() if k in ROBOT_IMAGE and v is not None}

    def require_robot_keywords(self) -> None:
        """Raise ValueError for a keyword that has no meaning for robot items."""
        for given, allowed in (
            (self.text, ROBOT_TEXT),
            (self.images, (*ROBOT_IMAGE, "return_tensors")),
            (self.own, ()),
        ):
            for name, value in given.items():
                if name not in allowed and value is not None:
                    raise ValueError(
                        f"{name}: not for robot items, which the model reads as it was trained; leave it out. With them, "
                        f"expected {', '.join((*ROBOT_TEXT, *ROBOT_IMAGE))}"
                    )


def keyword_names(processor: Any) -> dict[str, set[str]]:
    """Names that the tokenizer and the image processor take: `{"text": {...}, "images": {...}}`."""
    groups = ProcessingKwargs.__annotations__
    own = getattr(getattr(processor.image_processor, "valid_kwargs", None), "__annotations__", {})
    return {
        "text": set(groups["text_kwargs"].__annotations__),
        "images": {*groups["images_kwargs"].__annotations__, *own},
    }


def require_known_at_loading(processor_class: Any, parts: Iterable[Any], given: Mapping[str, Any]) -> None:
    """Raise TypeError for a keyword of `from_pretrained` that neither the processor nor one of its parts reads.

    Args:
        processor_class: Class of the processor.
        parts: Its loaded parts: image processors and tokenizer.
        given: The keywords, without those of the Hub.
    """
    known = {*inspect.signature(processor_class.__init__).parameters, *_OF_TOKENIZERS, *_OF_MODELS}
    for part in parts:
        known |= set(getattr(getattr(part, "valid_kwargs", None), "__annotations__", {}))
        known |= set(getattr(part, "SPECIAL_TOKENS_ATTRIBUTES", ()))
    require_known([name for name in given if not name.startswith("_")], known - {"self"}, "from_pretrained")


def refuse_other_media(given: dict[str, Any]) -> None:
    """Drops the keywords of videos and audio that hold nothing; raises ValueError for one that does."""
    groups = ProcessingKwargs.__annotations__
    common = {*groups["text_kwargs"].__annotations__, *groups["images_kwargs"].__annotations__}
    for medium, group in (("video", "videos_kwargs"), ("audio", "audio_kwargs")):
        for name in (medium, f"{medium}s", group, *set(groups[group].__annotations__) - common):
            # transformers itself passes these names without a value
            value = given.pop(name, None)
            if value is not None and value != {}:
                frames = "; pass single frames as images" if medium == "video" else ""
                raise ValueError(f"{name}: SyVLA reads images only{frames}")


def _refuse_without_effect(images: Mapping[str, Any], image_processor: Any) -> None:
    for name in IMAGE_WITHOUT_EFFECT:
        if images.get(name):
            raise ValueError(f"{name}: {type(image_processor).__name__} does not act on it; leave it out")
    for name in IMAGE_OF_THE_MODEL:
        trained = getattr(image_processor, name, None)
        if images.get(name) is not None and images[name] != trained:
            raise ValueError(f"{name}: the model was trained with {trained}, got {images[name]}; leave it out")
