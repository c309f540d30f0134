"""What is in the query states, which of them decoupling masks, how they are attended to, and what a wrong thought does.

Everything is measured on held-out episodes: masks and norms as training finds them (`gradient_norms`, `decoupling_mask`),
attention of the expert's action tokens to each state, and the action's error when the thought is exchanged for one that
names another thing on the table. Probes are in `decoupling_study_probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from benchmarks.decoupling_study_language import Request, exchanged_thought, full_thought, requests
from benchmarks.decoupling_study_plan import Arm, Recipe
from benchmarks.decoupling_study_policy import given_states, observation_of
from benchmarks.decoupling_study_probe import probes
from benchmarks.decoupling_study_scenes import Demonstrations
from syvla.evaluation.play.introspection import ATTENTION_TIME, recorded_attention
from syvla.modeling_syvla import SyVLAModel
from syvla.modeling_syvla.expert_inputs import ExpertObservation, action_target
from syvla.modeling_syvla.intention_decoupling import decoupling_mask, gradient_norms

PER_TARGET = 24  # requests; few wishes and names are met again with other episodes
DRAWS = 2  # of flow noise and time, for each frame
SAMPLES = 4  # chunks drawn for one frame, for their variance


@dataclass(frozen=True)
class HeldOut:
    """Requests, each with some frames of a held-out episode in which that target is to be taken.

    Attributes:
        requests: R of them, as many for each target.
        things: What lies on the table of each, from left to right.
        others: Target that a wrong thought names, of another thing on the same table, int (R,).
        observation: Of all frames, (R * F) rows.
        chunks: The expert's, (R * F, T, DIM).
        frames: Frames of each request, F.
    """

    requests: Sequence[Request]
    things: Sequence[Sequence[int]]
    others: np.ndarray
    observation: ExpertObservation
    chunks: torch.Tensor
    frames: int


def held_out(data: Demonstrations, recipe: Recipe) -> HeldOut:
    """`PER_TARGET` requests for each target that the episodes have; frames of the first half, before the thing is taken."""
    rng = np.random.default_rng(0)
    asked, episodes = [], []
    for target in np.unique(data.targets):
        options = requests(int(target))
        order = np.concatenate([rng.permutation(len(options)) for _ in range(-(-PER_TARGET // len(options)))])
        asked += [options[int(i)] for i in order[:PER_TARGET]]
        episodes.append(rng.choice(np.flatnonzero(data.targets == target), PER_TARGET))
    chosen = np.concatenate(episodes)
    offsets = np.arange(recipe.held_out_frames) / recipe.held_out_frames / 2
    frames = (data.starts[chosen, None] + (data.lengths[chosen, None] * offsets).astype(int)).ravel()
    observation = observation_of(data.views[frames], data.present[frames], data.states[frames])
    chunks = torch.from_numpy(data.chunks(frames, chosen.repeat(recipe.held_out_frames), recipe.chunk_size))
    things = [data.things(int(episode)) for episode in chosen]
    return HeldOut(asked, things, data.others[chosen], observation, chunks, recipe.held_out_frames)


def states_of(model: SyVLAModel, arm: Arm, data: HeldOut) -> torch.Tensor:
    """Query states after the right thoughts, (R, N, D)."""
    thoughts = right_thoughts(data) if arm.thoughts else [None] * len(data.requests)
    return given_states(model, [request.text for request in data.requests], data.things, thoughts)


def right_thoughts(data: HeldOut) -> list[str]:
    return [full_thought(request, things) for request, things in zip(data.requests, data.things, strict=True)]


def norms_of(model: SyVLAModel, states: torch.Tensor, data: HeldOut) -> np.ndarray:
    """Gradient norms of every frame for every draw of noise and time, (DRAWS, R, F, N)."""
    probe_states = states.repeat_interleave(data.frames, dim=0)
    found = []
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        noise = torch.randn(data.chunks.shape, generator=generator)
        uniform = torch.rand(len(noise), generator=generator)
        time = model.config.time_max * (1 - uniform.pow(1 / model.config.time_beta_alpha))
        target = action_target(model.config, data.observation.embodiment_ids, data.chunks, None, noise, time)
        probe = probe_states.detach().clone().requires_grad_()
        with torch.enable_grad():
            encoded = model.expert.encode_observation(data.observation).detach()
            found.append(gradient_norms(model.loss_of_states(probe, encoded, target), probe).detach())
    norms: np.ndarray = torch.stack(found).unflatten(1, (-1, data.frames)).numpy()
    return norms


def kept_states(norms: np.ndarray, quantile: float) -> np.ndarray:
    """What decoupling of the weakest would keep, bool, of the shape of `norms`."""
    flat = torch.from_numpy(norms.reshape(-1, norms.shape[-1]))
    kept: np.ndarray = decoupling_mask(flat, quantile, "sample").numpy().reshape(norms.shape)
    return kept


def agreement(masked: np.ndarray) -> float:
    """How far masks agree: share of common states in two masks' union, mean over all pairs; masked: bool (M, ..., N)."""
    pairs = []
    for a, b in combinations(range(len(masked)), 2):
        union = (masked[a] | masked[b]).sum(-1)
        both = (masked[a] & masked[b]).sum(-1)
        pairs.append(np.where(union > 0, both / np.maximum(union, 1), 1.0).mean())
    return float(np.mean(pairs)) if pairs else 1.0


def mask_statistics(norms: np.ndarray, quantile: float) -> dict[str, Any]:
    """Which states are masked, how stable that is, and how the norms are distributed.

    Args:
        norms: From `norms_of`, (draws, R, F, N).

    Returns:
        `share`: how often each state is masked. `agree_draws`, `agree_frames`, `agree_samples`: agreement of masks over draws
        of noise and time, over frames of an episode, over requests (same frame and draw). `chance`: agreement of as many states
        masked at random. `norms`: mean of each state's norm over the mean of its sample. `sorted_norms`: the same in order of
        size. `deciles` of the norms over their sample's mean.
    """
    masked = ~kept_states(norms, quantile)
    relative = norms / np.maximum(norms.mean(-1, keepdims=True), 1e-12)
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(np.concatenate((masked, masked)), axis=-1)
    return {
        "share": _rounded(masked.mean((0, 1, 2))),
        "agree_draws": round(agreement(masked), 4),
        "agree_frames": round(agreement(masked.transpose(2, 0, 1, 3)), 4),
        "agree_samples": round(agreement(rng.permutation(masked.transpose(1, 0, 2, 3))[:40]), 4),
        "chance": round(agreement(shuffled), 4),
        "norms": _rounded(relative.mean((0, 1, 2))),
        "sorted_norms": _rounded(np.sort(relative, axis=-1).mean((0, 1, 2))),
        "deciles": _rounded(np.quantile(relative, np.linspace(0, 1, 11))),
    }


@torch.no_grad()
def attention_to_states(model: SyVLAModel, states: torch.Tensor, data: HeldOut) -> list[float]:
    """Share of the action tokens' cross-attention that each state gets, mean over layers, heads, steps and frames."""
    repeated = states.repeat_interleave(data.frames, dim=0)
    noise = torch.randn(data.chunks.shape, generator=torch.Generator().manual_seed(0))
    context = model.encode_expert_context(repeated, data.observation)
    time = torch.full((len(noise),), ATTENTION_TIME)
    with recorded_attention() as weights:
        model.expert.predict_velocity(torch.lerp(noise, data.chunks, ATTENTION_TIME), time, context)
    cross = torch.stack([own[:, :, 1:].mean((0, 1, 2)) for own in weights[1::2]]).mean(0)  # without the time's token
    return _rounded(cross.numpy())


@torch.no_grad()
def exchanged(model: SyVLAModel, data: HeldOut) -> dict[str, float]:
    """Errors and variances of chunks after the right and after a wrong thought, normalized units.

    `error_right`, `error_wrong`: mean squared difference from the expert's chunk. `variance_right`, `variance_wrong`: of
    `SAMPLES` chunks of one frame. `moved`: mean squared difference of the means of both.
    """
    texts = [request.text for request in data.requests]
    right = given_states(model, texts, data.things, right_thoughts(data))
    rows = zip(data.requests, data.things, data.others, strict=True)
    wrong = given_states(model, texts, data.things, [exchanged_thought(r, own, int(other)) for r, own, other in rows])
    found: dict[str, float] = {}
    means = []
    for name, states in (("right", right), ("wrong", wrong)):
        repeated = states.repeat_interleave(data.frames, dim=0)
        drawn = []
        for draw in range(SAMPLES):
            noise = torch.randn(data.chunks.shape, generator=torch.Generator().manual_seed(draw))
            drawn.append(model.sample_actions(repeated, data.observation, noise=noise))
        chunks = torch.stack(drawn)  # (SAMPLES, R * F, T, DIM)
        found[f"error_{name}"] = round(float((chunks - data.chunks).square().mean()), 5)
        found[f"variance_{name}"] = round(float(chunks.var(0).mean()), 6)
        means.append(chunks.mean(0))
    found["moved"] = round(float((means[0] - means[1]).square().mean()), 5)
    return found


def measure(model: SyVLAModel, arm: Arm, data: HeldOut, halfway: np.ndarray | None, quantile: float) -> dict[str, Any]:
    """All of it for one trained policy.

    Args:
        halfway: Norms on the same frames and draws after half of the training.
        quantile: Of the masks that are looked at; of arms that mask nothing, what would be masked.
    """
    states = states_of(model, arm, data)
    norms = norms_of(model, states, data)
    found = {
        "masks": mask_statistics(norms, quantile),
        "attention": attention_to_states(model, states, data),
        "probes": probes(data.requests, data.things, states.double().numpy(), kept_states(norms, quantile)),
    }
    if halfway is not None:
        both = ~np.stack([kept_states(halfway, quantile), kept_states(norms, quantile)])
        found["masks"]["agree_training"] = round(agreement(both), 4)
    if arm.thoughts:
        found["exchanged"] = exchanged(model, data)
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
