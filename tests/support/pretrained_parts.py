"""Tiny random checkpoints in the shape in which Qwen-VL and SigLIP are published, saved by transformers' own classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from syvla.modeling_syvla import SyVLAConfig
from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS
from syvla.processing.tiny_processor import build_tiny_tokenizer

QUERY_TOKEN_ID = TINY_TOKEN_IDS["<|action_query|>"]
TEXT_TOKENS = QUERY_TOKEN_ID  # ids below are the tokenizer's own
_SIDE = 32
_VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def vlm_config(family: str = "qwen2_5_vl", tie: bool = True, **text: Any) -> Any:
    """Config of a tiny VLM of that family with the tiny tokenizer's ids."""
    config = SyVLAConfig.tiny().vlm_config.to_dict()
    fields = {key: config[key] for key in config if key.endswith("token_id")}
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "max_position_embeddings", "rms_norm_eps", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id",
              "rope_parameters")  # fmt: skip
    fields["text_config"] = {key: config["text_config"][key] for key in wanted}
    sizes = {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    deep = {"hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, **sizes}
    fields["vision_config"] = {
        "qwen2_5_vl": {**deep, "depth": 2, "fullatt_block_indexes": [1], "window_size": 32, "tokens_per_second": 2},
        "qwen2_vl": {**sizes, "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        "qwen3_vl": {**deep, "depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        "qwen3_5": {**deep, "depth": 2, "num_position_embeddings": 64},
    }[family]
    if family == "qwen3_vl":
        fields["text_config"]["head_dim"] = 16
    if family == "qwen3_5":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 0, 1], "mrope_interleaved": True}
        fields["text_config"].update(
            head_dim=16,
            num_hidden_layers=4,
            layer_types=["linear_attention"] * 3 + ["full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            rope_parameters={**rope, "partial_rotary_factor": 0.25},
        )
    fields["text_config"].update(text)
    return AutoConfig.for_model(family, tie_word_embeddings=tie, **fields)


def build_vlm(family: str = "qwen2_5_vl", dtype: torch.dtype = torch.bfloat16, seed: int = 1, **config: Any) -> Any:
    """Tiny VLM in which no two tensors are alike."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(vlm_config(family, **config))
    _shake(model)
    model.generation_config.update(do_sample=True, temperature=0.5, repetition_penalty=1.05)
    return model.to(dtype).eval()


def save_vlm(folder: Path, *, shards: str = "60KB", files: bool = False, **build: Any) -> Any:
    """Save a tiny VLM as its family is published; `files` adds tokenizer and image processor. Returns the model."""
    model = build_vlm(**build)
    model.save_pretrained(folder)
    for path in folder.glob("model*.safetensors*"):  # the names that `save_pretrained` gives depend on its version
        path.unlink()
    tensors = published(model.config.model_type, model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    tensors = {name: tensor.clone() for name, tensor in sorted(tensors.items())}
    save_torch_state_dict(tensors, folder, max_shard_size=shards, filename_pattern="model{suffix}.safetensors")
    if files:
        save_tokenizer(folder)
        image_processor = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": _SIDE * _SIDE,
            "max_pixels": 4 * _SIDE * _SIDE,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        write_json(folder / "preprocessor_config.json", image_processor)
    return model


def published(family: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` under the names of the family's checkpoints on the Hub."""
    if not family.startswith("qwen2"):
        return dict(tensors)
    names = (re.sub(r"^model\.visual\.", "visual.", name) for name in tensors)
    return dict(
        zip((re.sub(r"^model\.language_model\.", "model.", name) for name in names), tensors.values(), strict=True)
    )


def load_vlm(folder: Path) -> Any:
    """`transformers`' own model of a folder; versions with faulty image positions get the right ones."""
    from syvla.modeling_syvla.vlm_positions import use_right_image_positions

    model = AutoModelForImageTextToText.from_pretrained(folder)
    use_right_image_positions(model)
    return model


def save_tokenizer(folder: Path) -> None:
    """The tiny tokenizer without the query token, as a VLM's is."""
    build_tiny_tokenizer().save_pretrained(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    assert tokenizer["added_tokens"].pop()["id"] == QUERY_TOKEN_ID
    write_json(folder / "tokenizer.json", tokenizer)
    config = read_json(folder / "tokenizer_config.json")
    config.get("added_tokens_decoder", {}).pop(str(QUERY_TOKEN_ID), None)
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if key in config:
            config[key] = [token for token in config[key] if token != "<|action_query|>"]
    write_json(folder / "tokenizer_config.json", config)


def save_vision_tower(folder: Path, *, two_towers: bool = True, files: bool = False, seed: int = 2) -> Any:
    """Save a tiny SigLIP, float32, with text tower and pooling head. Returns the model."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(**_VISION, image_size=_SIDE, patch_size=8)
    text = {**_VISION, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16}
    if two_towers:
        model: Any = SiglipModel(SiglipConfig(text_config=text, vision_config=vision.to_dict()))
    else:
        model = SiglipVisionModel(vision)
    _shake(model)
    model.save_pretrained(folder)
    if files:
        size = {"height": 224, "width": 224}  # assembling sets the model's own size
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "rescale_factor": 1 / 255}
        write_json(
            folder / "preprocessor_config.json",
            {"image_processor_type": "SiglipImageProcessor", "size": size, **statistics},
        )
    return model.eval()


def disk_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file in a folder; a name that comes twice is an error."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            assert name not in tensors, name
            tensors[name] = tensor
    return tensors


def image_batch(
    family: str = "qwen2_5_vl", seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """A prompt with one image of 4 x 6 patches (6 tokens after merging) between words."""
    generator = torch.Generator().manual_seed(seed)
    ids = TINY_TOKEN_IDS
    words = torch.randint(0, 400, (9,), generator=generator).tolist()
    image = [ids["<|vision_start|>"], *[ids["<|image_pad|>"]] * 6, ids["<|vision_end|>"]]
    input_ids = torch.tensor([[*words[:4], *image, *words[4:]]])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == ids["<|image_pad|>"]).int(),
        "pixel_values": torch.randn(24, 3 * 2 * 8 * 8, generator=generator).to(dtype),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _shake(model: torch.nn.Module) -> None:
    """Initial weights are often all zeros or ones, which would hide a swap."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
