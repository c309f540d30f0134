"""The policy itself, in this process: a checkpoint that turns observations into action chunks in physical units.

The policy server and closed-loop evaluation run this same code. It is called with a batch of observations of several
episodes or clients, and its answer for one of them must not depend on the others: all randomness comes from the seed of
each call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_sde import sample_with_sde_step
from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.contract.requests import PreviousChunk
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .chunk_stitching import continue_chunk
from .loading import load_for_inference

Observation = dict[str, Any]
"""`{"images": {camera: uint8 (H, W, 3)}, "state": float32 (D,)}`, state in physical units."""


@dataclass(frozen=True)
class Intention:
    """What the VLM hands to the expert for B observations.

    Attributes:
        query_states: (B, N, D_vlm).
        mask: bool (B, N), True where real; None where all are.
        thoughts: B texts, or None without thinking.
    """

    query_states: torch.Tensor
    mask: torch.Tensor | None = None
    thoughts: list[str] | None = None


class SyVLAPolicy:
    """A SyVLA model and its processor, in this process.

    Args:
        model: `SyVLAModel`; put into evaluation mode.
        processor: `SyVLAProcessor` that knows `embodiment`.
        embodiment: Name under which processor and model keep the robot's dimensions and statistics.
        view_cameras: Model view to camera name, for example `{"center": "head", "left_wrist": "left_wrist"}`.
        think: Whether to generate a thought before each action chunk.
        max_new_tokens: Longest thought, in tokens; None leaves it to the model.
        num_steps: Euler steps of the flow; None takes the model's `num_inference_steps`.
        optional_cameras: Cameras that an observation may lack; their views are then masked.
        name: For reports.

    Raises:
        ValueError: If the processor does not know the embodiment, or does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        embodiment: str,
        view_cameras: Mapping[str, str],
        *,
        think: bool = False,
        max_new_tokens: int | None = None,
        num_steps: int | None = None,
        optional_cameras: Collection[str] = (),
        name: str = "SyVLA",
    ) -> None:
        if embodiment not in processor.embodiments:
            raise ValueError(
                f"embodiment: expected one of {sorted(processor.embodiments)}, which {name} was trained on, got "
                f"{embodiment!r}; fine-tune it on data of {embodiment!r} first"
            )
        problems = processor.disagreements(model.config)
        if problems:
            raise ValueError(f"{name}: processor and model do not belong together: " + "; ".join(problems))
        self.model = model.eval()
        self.processor = processor
        self.embodiment = embodiment
        self.view_cameras = dict(view_cameras)
        self.think = think
        self.max_new_tokens = max_new_tokens
        self.num_steps = num_steps
        self.optional_cameras = frozenset(optional_cameras)
        self.name = name
        self.chunk_size = int(model.config.chunk_size)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        embodiment: str,
        view_cameras: Mapping[str, str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        compile: bool = False,
        **options: Any,
    ) -> SyVLAPolicy:
        """Loads model and processor through their Auto classes.

        Args:
            path: Folder or Hub id of a checkpoint.
            embodiment: See the class.
            view_cameras: See the class.
            device, dtype, compile: See `load_for_inference`.
            **options: `think`, `max_new_tokens`, `num_steps`, `name`.
        """
        model, processor = load_for_inference(path, device=device, dtype=dtype, compile=compile)
        return cls(model, processor, embodiment, view_cameras, **{"name": str(path), **options})

    def identity(self) -> dict[str, Any]:
        """Weights and statistics by content, so that a copied or renamed checkpoint is the same policy."""
        return {
            "policy": "syvla",
            "weights": weights_digest(self.model),
            "embodiment": self.embodiment,
            "statistics": _digest(self.processor.embodiments[self.embodiment]),
            "think": self.think,
            "max_new_tokens": self.max_new_tokens,
            "num_steps": self.num_steps or self.model.config.num_inference_steps,
        }

    @torch.inference_mode()
    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
    ) -> ActionChunks:
        """See `syvla.evaluation.policy.Policy.predict`. The flow's initial noise of each sample is drawn from its own seed.

        Args:
            previous: What each chunk shall continue, if anything.
        """
        intention = self.intention(observations, instructions)
        return ActionChunks(self.denoise(observations, intention, seeds=seeds, previous=previous), intention.thoughts)

    @torch.inference_mode()
    def intention(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        think: bool | None = None,
        thoughts: Sequence[str | None] | None = None,
        max_new_tokens: int | None = None,
        streamer: Any = None,
    ) -> Intention:
        """The slow half, by the VLM: what the expert then acts on, with thoughts where the policy thinks.

        Args:
            think: Whether to generate thoughts; None: as the policy does by itself.
            thoughts: Earlier thoughts to act on instead, None for samples without one; only where none are generated.
            max_new_tokens: Longest thought; None: the policy's own.
            streamer: For `generate`; its `end` is called when the thoughts are complete.
        """
        think = self.think if think is None else think
        items = [{**item, "text": text} for item, text in zip(self._items(observations), instructions, strict=True)]
        if thoughts is not None:
            items = [{**item, "thought": thought} for item, thought in zip(items, thoughts, strict=True)]
        inputs = self.processor.collate(items, padding_side="left").to(self.model.device)
        generation: dict[str, Any] = {}
        if think:  # never sampled, whatever the checkpoint's generation config says: a seed decides all
            generation = {"tokenizer": self.processor.tokenizer, "streamer": streamer, "do_sample": False}
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit is not None:
            generation["max_new_tokens"] = limit
        given = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
        states, mask, generated, _ = self.model.predict_query_states(**given, think=think, **generation)
        return Intention(states, mask, generated)

    @torch.inference_mode()
    def denoise(
        self,
        observations: Sequence[Observation],
        intention: Intention,
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
        num_steps: int | None = None,
    ) -> np.ndarray:
        """The fast half, by the action expert: chunks (B, T, D_action) in physical units, on given query states.

        Args:
            num_steps: Euler steps of the flow; None: the policy's own.
        """
        device, items = self.model.device, self._items(observations)
        chunks = [None] * len(items) if previous is None else previous
        continuation = None
        if any(chunk is not None for chunk in chunks):
            shape = (self.chunk_size, self.model.config.max_action_dim)
            pairs = [
                continue_chunk(self.processor, self.embodiment, chunk, item["state"], *shape)
                for chunk, item in zip(chunks, items, strict=True)
            ]
            target, weights = (torch.stack(part).to(device) for part in zip(*pairs, strict=True))
            continuation = (target, weights)
        actions = self.model.sample_actions(
            intention.query_states,
            self._expert_observation(items),
            condition_mask=intention.mask,
            num_steps=self.num_steps if num_steps is None else num_steps,
            noise=self._noise(seeds).to(device),
            continuation=continuation,
        )
        return self._decoded(actions, items)

    @torch.inference_mode()
    def sample_rollout(
        self,
        observations: Sequence[Observation],
        intention: Intention,
        *,
        seeds: Sequence[int],
        sampler: RolloutSampler,
    ) -> tuple[np.ndarray, list[ChainStep]]:
        """`denoise` with one stochastic step per sample, for rollouts that are scored by it.

        Noise, stochastic step and its number come from each sample's own seed.

        Returns:
            (chunks (B, T, D_action) in physical units, the stochastic step of each).

        Raises:
            ValueError: If the action head is no flow.
        """
        config = self.model.config
        if config.action_head != "flow_matching":
            raise ValueError(f"{sampler.method}: expected a policy that samples a flow, got {config.action_head!r}")
        items, shape = self._items(observations), (self.chunk_size, config.max_action_dim)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        kick = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        step = torch.stack([torch.randint(sampler.num_steps, (), generator=generator) for generator in generators])
        context = self.model.encode_expert_context(
            intention.query_states, self._expert_observation(items), intention.mask
        )
        device = self.model.device
        actions, before, after = sample_with_sde_step(
            lambda x, t: self.model.expert.predict_velocity(x, t, context),
            noise.to(device),
            kick.to(device),
            step.to(device),
            num_steps=sampler.num_steps,
            noise_level=sampler.noise_level,
        )
        width = self.processor.embodiments[self.embodiment]["action_dim"]
        own = [part[..., :width].float().cpu().numpy() for part in (before, after)]
        chains = [
            ChainStep(x, following, int(number), sampler) for x, following, number in zip(*own, step, strict=True)
        ]
        return self._decoded(actions[..., :width], items), chains

    def _expert_observation(self, items: list[dict[str, Any]]) -> ExpertObservation:
        inputs = {name: tensor.to(self.model.device) for name, tensor in self.processor.expert_inputs(items).items()}
        return ExpertObservation.checked(self.model.config, len(items), **inputs)

    def _decoded(self, actions: torch.Tensor, items: list[dict[str, Any]]) -> np.ndarray:
        states = np.stack([item["state"] for item in items])
        return np.asarray(
            self.processor.decode_actions(actions.float().cpu(), self.embodiment, states), dtype=np.float32
        )

    def _items(self, observations: Sequence[Observation]) -> list[dict[str, Any]]:
        return [
            {
                "images": self._views(observation),
                "state": np.asarray(observation["state"], dtype=np.float32),
                "embodiment": self.embodiment,
            }
            for observation in observations
        ]

    def _views(self, observation: Observation) -> dict[str, np.ndarray]:
        images = observation["images"]
        missing = sorted(set(self.view_cameras.values()) - set(images) - self.optional_cameras)
        if missing:
            raise ValueError(
                f"observation images: cameras {missing} are missing, got {sorted(images)}; fix view_cameras"
            )
        return {view: images[camera] for view, camera in self.view_cameras.items() if camera in images}

    def _noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """(B, T, D_max) float32; drawn on the CPU so that every device sees the same values."""
        shape = (self.chunk_size, self.model.config.max_action_dim)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda leaf: np.asarray(leaf).tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of every parameter and buffer with its name, dtype and shape, 32 digits; the same on every device.

    Tensors are hashed side by side, at about what reading them took. Tied ones are read once.
    """

    def hashed(tensor: torch.Tensor) -> str:
        values = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu()
        return hashlib.sha256(values.numpy().data).hexdigest()

    state = model.state_dict()
    distinct = {_place(tensor): tensor for tensor in state.values()}
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter
        digests = dict(zip(distinct, pool.map(hashed, distinct.values()), strict=True))
    facts = {name: [str(t.dtype), list(t.shape), digests[_place(t)]] for name, t in state.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
