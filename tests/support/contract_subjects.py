"""The models that the contracts of transformers, PEFT and TRL are asked of: ours, and two of transformers beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from syvla.modeling_syvla import (
    SyVLAConfig,
    SyVLAForConditionalGeneration,
    SyVLAModel,
    SyVLAValueConfig,
    SyVLAValueModel,
)
from syvla.modeling_syvla.configuration_syvla import TINY_TOKEN_IDS

ROBOTS = {"tabletop": {"state_dim": 14, "action_dim": 14}}
IMAGE_TOKENS = 4  # 4 x 4 patches, merged 2 x 2


@dataclass(frozen=True)
class Subject:
    """A model, the batches that it takes, and what of its output tells two models apart.

    Attributes:
        name: In the table.
        ours: Whether a broken contract is a fault of this project.
        build: Makes the model with the fixed weights of a seed.
        batch: Makes a batch that yields a loss, equal at every call.
        signal: The tensor of an output that depends on all its weights but those of the loss.
        has_text: Whether it has a language model with a tied head.
        can_generate: Whether it writes text.
    """

    name: str
    ours: bool
    build: Callable[..., Any]
    batch: Callable[[], dict[str, torch.Tensor]]
    signal: Callable[[Any], torch.Tensor]
    has_text: bool = True
    can_generate: bool = False

    def model(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model = self.build().eval()
        for name, p in model.named_parameters():  # at initialization a tied head only repeats the last token
            if p.ndim == 2 and ".layers." in name and "language_model" in name:
                p.data.mul_(8.0)
        return model

    def __str__(self) -> str:
        return self.name


def text_batch(rows: int = 2, queries: int = 0) -> dict[str, torch.Tensor]:
    """A question about one image per row, as (rows, L) tokens, with labels on the last four tokens of text."""
    generator = torch.Generator().manual_seed(1)
    ids = TINY_TOKEN_IDS
    image = [ids["<|vision_start|>"], *[ids["<|image_pad|>"]] * IMAGE_TOKENS, ids["<|vision_end|>"]]
    words = torch.randint(0, 400, (rows, 9), generator=generator)
    tail = torch.full((rows, queries), ids["<|action_query|>"])
    input_ids = torch.cat((torch.tensor([image] * rows), words, tail), dim=1)
    labels = torch.full_like(input_ids, -100)
    labels[:, len(image) + 5 : len(image) + 9] = words[:, 5:]
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == ids["<|image_pad|>"]).int(),
        "pixel_values": torch.randn(rows * 16, 3 * 2 * 8 * 8, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
        "labels": labels,
    }


def robot_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        **text_batch(queries=8),
        "state": torch.randn(2, 14, generator=generator),
        "embodiment_ids": torch.zeros(2, dtype=torch.long),
        "actions": torch.randn(2, 8, 14, generator=generator),
        "expert_pixel_values": torch.randn(2, 3, 3, 32, 32, generator=generator),
        "noise": torch.randn(2, 8, 14, generator=generator),
        "timestep": torch.tensor([0.3, 0.6]),
    }


def value_batch() -> dict[str, torch.Tensor]:
    kept = ("state", "embodiment_ids", "expert_pixel_values")
    return {**{name: robot_batch()[name] for name in kept}, "returns": torch.tensor([0.25, -0.5])}


def _qwen() -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from syvla.modeling_syvla.vlm_positions import use_right_image_positions

    model = Qwen2_5_VLForConditionalGeneration(SyVLAConfig.tiny().vlm_config)
    use_right_image_positions(model)  # older transformers place images wrongly
    return model


def _pi0() -> Any:
    import transformers

    if not hasattr(transformers, "PI0Config"):
        raise NotImplementedError("this transformers has no PI0")
    paper = transformers.PI0Config()
    vlm, dit = paper.vlm_config.to_dict(), paper.dit_config.to_dict()
    text, vision = vlm["text_config"], vlm["vision_config"]
    for part in (text, dit):
        part.pop("layer_types", None)
        part.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
    vision.update(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    text["vocab_size"], vlm["image_token_id"] = 512, 511
    vlm["projection_dim"] = vision["projection_dim"] = 32
    config = transformers.PI0Config(vlm_config=vlm, dit_config=dit, chunk_size=8)
    return transformers.PI0ForConditionalGeneration(config)


def pi0_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.cat((torch.full((2, 8), 511), torch.randint(0, 500, (2, 6), generator=generator)), dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(2, 2, 3, 28, 28, generator=generator),
        "pixel_attention_mask": torch.ones(2, 2, dtype=torch.bool),
        "state": torch.randn(2, 32, generator=generator),
        "actions": torch.randn(2, 8, 32, generator=generator),
        "noise": torch.randn(2, 8, 32, generator=generator),
        "timestep": torch.tensor([0.3, 0.6]),
    }


def _logits(output: Any) -> torch.Tensor:
    return output.logits


SUBJECTS = (
    Subject(
        "SyVLAForConditionalGeneration",
        True,
        lambda: SyVLAForConditionalGeneration(SyVLAConfig.tiny(embodiments=ROBOTS)),
        text_batch,
        _logits,
        can_generate=True,
    ),
    Subject(
        "SyVLAModel",
        True,
        lambda: SyVLAModel(SyVLAConfig.tiny(embodiments=ROBOTS, intention_decoupling=False)),
        robot_batch,
        lambda output: torch.cat((output.action_loss_per_sample, output.query_states.flatten())),
        can_generate=True,
    ),
    Subject(
        "SyVLAValueModel",
        True,
        lambda: SyVLAValueModel(SyVLAValueConfig.tiny(embodiments=ROBOTS)),
        value_batch,
        lambda output: output.value,
        has_text=False,
    ),
    Subject("Qwen2_5_VLForConditionalGeneration", False, _qwen, text_batch, _logits, can_generate=True),
    Subject("PI0ForConditionalGeneration", False, _pi0, pi0_batch, _logits),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}
TEXT, POLICY, VALUE, QWEN, PI0 = SUBJECTS
