"""The policy of `benchmarks.decoupling_study`: the shipped model at a tiny size, its training, and its query states.

All that the arms differ by are fields of `SyVLAConfig` and whether there are thoughts. Masks and noise are those of
`SyVLAModel.action_loss`. A step reads a few instructions and, for each, several frames of an episode that they fit; the
frames of one instruction share its query states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.decoupling_study_language import (
    Request,
    TextBatch,
    WordTokenizer,
    disturbed_prompt,
    full_thought,
    prompt_ids,
    requests,
    sequence_ids,
    text_batch,
)
from benchmarks.decoupling_study_plan import MATCHED, Arm, Recipe
from benchmarks.decoupling_study_scenes import DIM, SIDE, VIEWS, Demonstrations
from syvla.modeling_syvla import SyVLAConfig, SyVLAExpertConfig, SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation

THOUGHT_TOKENS = 16  # the longest thought has 13


def model_config(recipe: Recipe, arm: Arm) -> SyVLAConfig:
    """Configuration of an arm."""
    fields = {"num_query_tokens": recipe.num_query_tokens, **arm.model}
    if fields.get("query_noise") == MATCHED:
        fields["query_noise"] = float(fields["num_query_tokens"] ** -0.5)
    vlm = SyVLAConfig.tiny().vlm_config.to_dict()
    heads = 4
    vlm["text_config"] |= {
        "hidden_size": recipe.vlm_width,
        "intermediate_size": 2 * recipe.vlm_width,
        "num_hidden_layers": recipe.vlm_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "layer_types": ["full_attention"] * recipe.vlm_layers,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": _sections(recipe.vlm_width // heads),
        },
    }  # fmt: skip
    vlm["vision_config"] |= {"out_hidden_size": recipe.vlm_width, "depth": 1, "fullatt_block_indexes": [0]}
    width = recipe.expert_width
    return SyVLAConfig.tiny(
        vlm_config=vlm,
        expert_config=SyVLAExpertConfig(
            hidden_size=width, num_hidden_layers=recipe.expert_layers, num_attention_heads=4, head_dim=width // 4,
            ff_multiple_of=16,
        ),
        # The image encoder has one patch for each view, so that a view becomes one token.
        expert_vision_config={
            "model_type": "siglip_vision_model", "vision_use_head": False, "image_size": SIDE, "patch_size": SIDE,
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1, "num_attention_heads": 1,
        },
        expert_image_size=SIDE,
        views=VIEWS,
        chunk_size=recipe.chunk_size,
        num_inference_steps=recipe.flow_steps,
        lm_loss_weight=recipe.lm_loss_weight,
        embodiments={"tabletop": {"state_dim": DIM, "action_dim": DIM}},
        **fields,
    )  # fmt: skip


def _sections(head_dim: int) -> list[int]:
    """Parts of the rotary embedding for time, height and width; together half a head."""
    half = head_dim // 2
    part = half // 3
    return [half - 2 * part, part, part]


def make_model(recipe: Recipe, arm: Arm, seed: int) -> SyVLAModel:
    """Its initial weights depend on shape and seed alone."""
    torch.manual_seed(seed)
    return SyVLAModel(model_config(recipe, arm)).eval()


def observation_of(views: np.ndarray, present: np.ndarray, states: np.ndarray) -> ExpertObservation:
    """What the expert reads of scenes: arrays (B, V, FEATURES), (B, V), (B, DIM)."""
    pixels = torch.from_numpy(views).view(len(views), len(VIEWS), 3, SIDE, SIDE)
    robot = torch.zeros(len(views), dtype=torch.int64)
    return ExpertObservation(torch.from_numpy(states), robot, pixels, torch.from_numpy(present))


class Batches:
    """Random batches of texts and frames; what comes depends on seed and data alone, not on the arm.

    Args:
        data: Demonstrations.
        recipe: Sizes.
        arm: Whether there are thoughts, and the number of queries.
        seed: Of the draws.
    """

    def __init__(self, data: Demonstrations, recipe: Recipe, arm: Arm, seed: int) -> None:
        self._data, self._recipe = data, recipe
        self._rng = np.random.default_rng([seed, 7])
        self._thoughts = arm.thoughts
        self._queries = int(arm.model.get("num_query_tokens", recipe.num_query_tokens))

    def draw(self) -> tuple[TextBatch, ExpertObservation, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Texts (E rows), observations, chunks, flow noise and times (E * frames rows)."""
        data, recipe, rng = self._data, self._recipe, self._rng
        episodes = rng.integers(len(data.targets), size=recipe.texts_per_step)
        asked = [_one_of(requests(int(target)), rng) for target in data.targets[episodes]]
        things = [data.things(int(episode)) for episode in episodes]
        prompts = [
            disturbed_prompt(request.text, own, recipe.word_noise, rng)
            for request, own in zip(asked, things, strict=True)
        ]
        place = rng.random((len(episodes), recipe.frames_per_text)) ** recipe.frame_power
        which = (place * data.lengths[episodes, None]).astype(int)
        frames = (data.starts[episodes, None] + which).ravel()
        chunks = data.chunks(frames, episodes.repeat(recipe.frames_per_text), recipe.chunk_size)
        noise = rng.standard_normal(chunks.shape, dtype=np.float32)
        uniform = rng.random(len(frames), dtype=np.float32)
        observation = observation_of(data.views[frames], data.present[frames], data.states[frames])
        thoughts = [
            full_thought(request, own) if self._thoughts else None for request, own in zip(asked, things, strict=True)
        ]
        texts = text_batch(
            sequence_ids(prompt, words, self._queries) for prompt, words in zip(prompts, thoughts, strict=True)
        )
        return texts, observation, *(torch.from_numpy(part) for part in (chunks, noise, uniform))


def _one_of(options: Sequence[Request], rng: np.random.Generator) -> Request:
    return options[int(rng.integers(len(options)))]


def train(
    model: SyVLAModel, batches: Batches, recipe: Recipe, at: Callable[[int], None] = lambda step: None
) -> list[dict[str, float]]:
    """Trains all weights.

    Args:
        at: Called with the number of steps done after each of them.

    Returns:
        Mean losses of each tenth of training.
    """
    weights = [weight for name, weight in model.named_parameters() if not name.startswith("vlm.model.visual")]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.train_steps, pct_start=0.1
    )
    losses = []
    for step in range(1, recipe.train_steps + 1):
        model.train()
        texts, observation, chunks, noise, uniform = batches.draw()
        hidden = model.encode(texts.ids, texts.mask)
        states = model.select_query_states(hidden, texts.ids).repeat_interleave(recipe.frames_per_text, dim=0)
        time = model.config.time_max * (1 - uniform.pow(1 / model.config.time_beta_alpha))
        action, _ = model.action_loss(states, observation, chunks, None, noise, time)
        lm = model.lm_loss(hidden, texts.labels)
        loss = action.mean() + recipe.lm_loss_weight * lm
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        losses.append((action.mean().item(), lm.item()))
        model.eval()
        at(step)
    tenths = np.array_split(np.array(losses), min(10, len(losses)))
    return [{"action": round(float(a), 5), "thought": round(float(b), 5)} for a, b in (part.mean(0) for part in tenths)]


@torch.no_grad()
def thoughtful_states(
    model: SyVLAModel, texts: Sequence[str], things: Sequence[Sequence[int]], thoughts: bool
) -> tuple[torch.Tensor, list[str]]:
    """Query states (B, N, D) as a policy in use has them, with thoughts of its own; and these thoughts.

    Args:
        texts: Instructions.
        things: What lies on each table, from left to right.
        thoughts: Whether to think.
    """
    prompts = [prompt_ids(text, own) for text, own in zip(texts, things, strict=True)]
    batch = text_batch((prompt, [0] * len(prompt)) for prompt in prompts)
    if not thoughts:
        return model.predict_query_states(batch.ids, batch.mask)[0], [""] * len(texts)
    tokenizer: Any = WordTokenizer()
    states, _, said, _ = model.predict_query_states(
        batch.ids, batch.mask, think=True, max_new_tokens=THOUGHT_TOKENS, tokenizer=tokenizer, do_sample=False
    )
    return states, list(said or ())


@torch.no_grad()
def given_states(
    model: SyVLAModel, texts: Sequence[str], things: Sequence[Sequence[int]], thoughts: Sequence[str | None]
) -> torch.Tensor:
    """Query states (B, N, D) after given thoughts."""
    batch = text_batch(
        sequence_ids(prompt_ids(text, own), words, model.config.num_query_tokens)
        for text, own, words in zip(texts, things, thoughts, strict=True)
    )
    return model.select_query_states(model.encode(batch.ids, batch.mask), batch.ids)
