"""A checkpoint in this process: it turns observations into action chunks in physical units.

The policy server and closed-loop evaluation run this same code. An answer takes three steps: the processor makes the
model's inputs (`inputs`), the VLM reads them (`intention`), and the action expert denoises a chunk (`denoise`). A batch
may hold observations of several episodes or clients; the answer to one must not depend on the others, so all randomness
comes from each sample's own seed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from syvla.modeling_syvla.advantage_guidance import check_advantage_guidance
from syvla.modeling_syvla.episode_memory import EpisodeMemory, memory_of_prompts, require_rememberable
from syvla.modeling_syvla.expert_inputs import ExpertObservation
from syvla.modeling_syvla.flow_matching import continuation_weights
from syvla.serving.contract.action_chunks import ActionChunks
from syvla.serving.contract.requests import PreviousChunk

from .loading import content_digest, load_for_inference, weights_digest

Observation = dict[str, Any]
"""`{"images": {camera: uint8 (H, W, 3)}, "state": float32 (D,)}`, state in physical units."""


PROMPT_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
EXPERT_INPUTS = ("state", "embodiment_ids", "expert_pixel_values", "expert_view_mask")


@dataclass(frozen=True)
class ModelInputs:
    """B observations as the model takes them.

    Attributes:
        prompt: What the VLM reads, on the model's device; empty if only the action expert is asked.
        expert: What the action expert reads.
        states: B times float32 (D_state,), physical units: actions may be relative to them.
        items: What the processor made the prompts of.
    """

    prompt: Mapping[str, torch.Tensor]
    expert: ExpertObservation
    states: Sequence[np.ndarray]
    items: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Intention:
    """What the VLM hands to the action expert for B observations.

    Attributes:
        query_states: (B, N, D_vlm).
        mask: bool (B, N), False for padding; None without padding.
        thoughts: B texts, or None without thinking.
        plain_states: (B, N, D_vlm), of the same prompts without an advantage indicator; None without guidance by it.
        seconds: What each phase of the VLM's run took: `think`, `queries`. The samples of a batch share it.
    """

    query_states: torch.Tensor
    mask: torch.Tensor | None = None
    thoughts: list[str] | None = None
    plain_states: torch.Tensor | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)


class PhaseClock:
    """Measures phases, on devices that compute behind the caller's back too; as a streamer of `generate`, the thought.

    Args:
        device: On a GPU, what this thread queued on its current stream is waited for; work of other threads is not.

    Attributes:
        seconds: Of each phase that is over.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def put(self, value: Any) -> None:
        """Does nothing; `generate` calls it for every token."""

    def end(self) -> None:
        """Ends the phase `think`; `generate` calls it when the thought is complete."""
        self.mark("think")

    def mark(self, phase: str) -> None:
        """Notes that the time since the last mark belongs to `phase`."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now


REMEMBERED = 8
"""Instructions whose last call a policy remembers; at the paper's size each takes about 15 MB."""

NOISES = ("random", "zero")
"""Where the flow begins, see [`SyVLAPolicy`]."""


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
        noise: Where the flow begins: "random", drawn from each call's seed as in training, or "zero", its mean, so that a call
            has one answer whatever its seed.
        advantage_guidance: For a checkpoint that was trained with an advantage indicator (`syvla-ppo --objective recap`): how
            far its flow is moved from the policy's average towards "positive", at the cost of a second pass of VLM and expert;
            None or 1: the indicator in the prompt alone.
        remember: Whether a call with a single observation goes on from the last one with the same instruction, see
            `syvla.modeling_syvla.episode_memory`: in less time the same answer up to rounding.
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
        noise: str = "random",
        advantage_guidance: float | None = None,
        remember: bool = False,
        optional_cameras: Collection[str] = (),
        name: str = "SyVLA",
    ) -> None:
        if embodiment not in processor.embodiments:
            raise ValueError(
                f"embodiment: expected one of {sorted(processor.embodiments)}, which {name} was trained on, got "
                f"{embodiment!r}; fine-tune it on data of {embodiment!r} first"
            )
        if noise not in NOISES:
            raise ValueError(f"noise: expected one of {', '.join(NOISES)}, got {noise!r}")
        if noise != "random" and model.config.action_head != "flow_matching":
            raise ValueError(f"noise: {noise} has no effect, since {name} has no flow; leave it out")
        check_advantage_guidance(model, advantage_guidance)
        if remember:
            require_rememberable(model, 1, {"do_sample": False}, think=True)
        problems = processor.disagreements(model.config)
        if problems:
            raise ValueError(f"{name}: processor and model do not belong together: " + "; ".join(problems))
        self.model = model.eval()
        self.processor = processor
        self.embodiment = embodiment
        self.view_cameras = dict(view_cameras)
        self.think = think
        self.max_new_tokens = max_new_tokens
        self.num_steps, self.noise = num_steps, noise
        self.advantage_guidance = None if advantage_guidance == 1 else advantage_guidance
        self.remember, self._memories = remember, OrderedDict[str, EpisodeMemory]()
        self.optional_cameras = frozenset(optional_cameras)
        self.name = name
        self.chunk_size = int(model.config.chunk_size)
        rate = processor.embodiments[embodiment].get("control_hz")
        self.control_hz = None if rate is None else float(rate)
        self.chunk_shape = (self.chunk_size, int(model.config.max_action_dim))  # as the model sees it: (T, D_max)

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
            **options: `think`, `max_new_tokens`, `num_steps`, `noise`, `advantage_guidance`, `name`.
        """
        model, processor = load_for_inference(path, device=device, dtype=dtype, compile=compile)
        return cls(model, processor, embodiment, view_cameras, **{"name": str(path), **options})

    def identity(self) -> dict[str, Any]:
        """Weights and statistics by content, so that a copied or renamed checkpoint is the same policy."""
        chosen = {
            "noise": None if self.noise == "random" else self.noise,
            "advantage_guidance": self.advantage_guidance,
        }
        return {
            "policy": "syvla",  # what is left at its default is absent, as in results from before there was a choice
            **{name: value for name, value in chosen.items() if value is not None},
            "weights": weights_digest(self.model),
            "embodiment": self.embodiment,
            "statistics": content_digest(self.processor.embodiments[self.embodiment])[:16],
            "think": self.think,
            "max_new_tokens": self.max_new_tokens,
            "num_steps": self.num_steps or self.model.config.num_inference_steps,
            "flow_solver": f"{self.model.config.flow_solver}, grid power {self.model.config.flow_grid_power:g}",
        }

    @torch.no_grad()
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
        images, states = ([observation[part] for observation in observations] for part in ("images", "state"))
        inputs = self.inputs(images, states, instructions)
        intention = self.intention(inputs)
        return ActionChunks(self.denoise(inputs, intention, seeds=seeds, previous=previous), intention.thoughts)

    # ------------------------------------------------------------------ the steps of an answer

    def inputs(
        self,
        images: Sequence[Mapping[str, np.ndarray]],
        states: Sequence[np.ndarray],
        instructions: Sequence[str],
        thoughts: Sequence[str | None] | None = None,
    ) -> ModelInputs:
        """B observations for VLM and action expert.

        Args:
            images: Camera to uint8 (H, W, 3), for each observation.
            states: float32 (D_state,), physical units.
            instructions: What the robot is to do.
            thoughts: Earlier thoughts to act on, None for samples without one; None when thoughts are to be generated.
        """
        texts: list[dict[str, Any]] = [{"text": text} for text in instructions]
        if thoughts is not None:
            texts = [{**text, "thought": thought} for text, thought in zip(texts, thoughts, strict=True)]
        items = [{**item, **text} for item, text in zip(self._items(images, states), texts, strict=True)]
        return self._model_inputs(items, self.processor.collate(items, padding_side="left"))

    def expert_inputs(self, images: Sequence[Mapping[str, np.ndarray]], states: Sequence[np.ndarray]) -> ModelInputs:
        """As `inputs`, for the action expert alone: enough for `denoise`."""
        items = self._items(images, states)
        return self._model_inputs(items, self.processor.expert_inputs(items))

    def _model_inputs(self, items: list[dict[str, Any]], batch: Mapping[str, torch.Tensor]) -> ModelInputs:
        tensors = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        expert = {name: tensors[name] for name in EXPERT_INPUTS}
        return ModelInputs(
            {name: tensors[name] for name in PROMPT_INPUTS if name in tensors},
            ExpertObservation.checked(self.model.config, len(items), **expert),
            [item["state"] for item in items],
            items,
        )

    @torch.inference_mode()
    def intention(
        self, inputs: ModelInputs, *, think: bool | None = None, max_new_tokens: int | None = None
    ) -> Intention:
        """The slow half, by the VLM: what the expert then acts on, with thoughts if the policy thinks.

        Args:
            think: Whether to generate thoughts; None: as the policy does by itself.
            max_new_tokens: Longest thought; None: the policy's own.
        """
        clock = PhaseClock(self.model.device)
        generation: dict[str, Any] = {}
        think = self.think if think is None else think
        if think:  # never sampled, whatever the checkpoint's generation config says: a seed decides all
            generation = {"tokenizer": self.processor.tokenizer, "streamer": clock, "do_sample": False}
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit is not None:
            generation["max_new_tokens"] = limit
        memory = self._take_memory(inputs, think)
        known = {} if memory is None else {"memory": memory}
        states, mask, thoughts, _ = self.model.predict_query_states(**inputs.prompt, think=think, **generation, **known)
        plain = None if self.advantage_guidance is None else self._plain_states(inputs, thoughts, known)
        if memory is not None and self.remember:
            self._memories[inputs.items[0]["text"]] = memory
            while len(self._memories) > REMEMBERED:
                self._memories.popitem(last=False)
        clock.mark("queries")
        return Intention(states, mask, thoughts, plain, clock.seconds)

    def _take_memory(self, inputs: ModelInputs, think: bool) -> EpisodeMemory | None:
        """What the VLM knows of a single observation's episode; no other call has it meanwhile."""
        if self.remember and len(inputs.items) == 1:
            return self._memories.pop(inputs.items[0]["text"], None) or EpisodeMemory()
        if self.advantage_guidance is not None and not think:  # two prompts that differ in their last words
            return memory_of_prompts(self.model, len(inputs.items))
        return None

    def _plain_states(
        self, inputs: ModelInputs, thoughts: list[str] | None, known: Mapping[str, EpisodeMemory]
    ) -> torch.Tensor:
        """Query states of the same prompts, and thoughts, without the advantage indicator."""
        items: list[dict[str, Any]] = [{**item, "advantage": "none"} for item in inputs.items]
        if thoughts is not None:
            items = [{**item, "thought": thought} for item, thought in zip(items, thoughts, strict=True)]
        batch = self.processor.collate(items, padding_side="left")
        prompt = {name: batch[name].to(self.model.device) for name in PROMPT_INPUTS if name in batch}
        plain: torch.Tensor = self.model.predict_query_states(**prompt, **known)[0]
        return plain

    @torch.no_grad()
    def denoise(
        self,
        inputs: ModelInputs,
        intention: Intention,
        *,
        seeds: Sequence[int],
        previous: Sequence[PreviousChunk | None] | None = None,
        num_steps: int | None = None,
        noise: Sequence[np.ndarray | None] | None = None,
    ) -> np.ndarray:
        """The fast half, by the action expert: chunks (B, T, D_action) in physical units, on given query states.

        Args:
            previous: What each chunk shall continue, if anything; all with the same `max_guidance_weight` and `known`.
            num_steps: Euler steps of the flow; None: the policy's own.
            noise: Initial noise of the flow, float32 (T, D_action), in place of what the seed gives; None where there is none.

        Raises:
            ValueError: Noise or a previous chunk that does not fit, different guidance weights, or guidance that the model
                cannot take.
        """
        shape, device = self.chunk_shape, self.model.device
        begin = torch.stack(
            [self._initial_noise(*pair) for pair in zip(seeds, noise or [None] * len(seeds), strict=True)]
        )
        continuation: Any = None
        delays = None
        if previous is not None and any(chunk is not None for chunk in previous):
            pairs = [
                continue_chunk(self.processor, self.embodiment, chunk, state, *shape)
                for chunk, state in zip(previous, inputs.states, strict=True)
            ]
            target, weights = (torch.stack(part).to(device) for part in zip(*pairs, strict=True))
            delays = known_delays(previous)
            continuation = (target, weights if delays is None else delays.to(device))
        states, expert, mask, guidance = (
            intention.query_states,
            inputs.expert,
            intention.mask,
            shared_guidance(previous),
        )
        plain = intention.plain_states
        if guidance is not None:  # tensors of inference mode cannot take part in a backward pass; their copies can
            states, mask, plain = states.clone(), *(None if part is None else part.clone() for part in (mask, plain))
            expert = ExpertObservation(*(getattr(expert, part.name).clone() for part in fields(expert)))
        with torch.inference_mode(guidance is None):
            actions = self.model.sample_actions(
                states,
                expert,
                condition_mask=mask,
                num_steps=self.num_steps if num_steps is None else num_steps,
                noise=begin.to(device),
                continuation=continuation if delays is None else None,
                known_actions=None if delays is None else continuation,
                max_guidance_weight=guidance,
                advantage_guidance=self.advantage_guidance,
                plain_query_states=plain,
            )
            return self.physical(actions, inputs)

    def _initial_noise(self, seed: int, given: np.ndarray | None) -> torch.Tensor:
        """Where the flow of one sample begins, float32 (T, D_max); drawn on the CPU, so that every device sees the same."""
        if given is None:
            generator = torch.Generator().manual_seed(seed)
            zero = self.noise == "zero"
            return torch.zeros(self.chunk_shape) if zero else torch.randn(self.chunk_shape, generator=generator)
        if self.model.config.action_head != "flow_matching":
            raise ValueError(f"noise: has no effect, since {self.name} has no flow; leave it out")
        expected = (self.chunk_size, int(self.processor.embodiments[self.embodiment]["action_dim"]))
        if given.shape != expected:
            raise ValueError(
                f"noise: expected shape {expected}, steps of a chunk and actions of the robot, got {given.shape}"
            )
        begin = torch.zeros(self.chunk_shape)  # the model reads no further dimension
        begin[:, : expected[1]] = torch.from_numpy(np.array(given, np.float32))
        return begin

    def physical(self, actions: torch.Tensor, inputs: ModelInputs) -> np.ndarray:
        """Normalized actions (B, T, D) of the model as float32 (B, T, D_action) in physical units."""
        decoded = self.processor.decode_actions(actions.float().cpu(), self.embodiment, np.stack(inputs.states))
        return np.asarray(decoded, dtype=np.float32)

    def _items(self, images: Sequence[Mapping[str, np.ndarray]], states: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Observations as the processor takes them, with the model's names of the views."""
        items = []
        for views, state in zip(images, states, strict=True):
            missing = sorted(set(self.view_cameras.values()) - set(views) - self.optional_cameras)
            if missing:
                raise ValueError(
                    f"observation images: cameras {missing} are missing, got {sorted(views)}; fix view_cameras"
                )
            named = {view: views[camera] for view, camera in self.view_cameras.items() if camera in views}
            items.append({"images": named, "state": np.asarray(state, dtype=np.float32), "embodiment": self.embodiment})
        return items


# ---------------------------------------------------------------------- chunks that continue the running one


def continue_chunk(
    processor: Any, embodiment: str, previous: PreviousChunk | None, state: np.ndarray, num_steps: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample's continuation as the model takes it: normalized actions (T, D_max) and weights (T,).

    Training-free real-time chunking (Black et al. 2025, arXiv 2506.07339), as published or without gradients, for robots that
    ask before their chunk has run out (`ChunkExecutor(prefetch=...)`). The steps that run before the answer arrives are
    frozen, so that robot and policy agree on them; as published they are drawn like the others, with weight 1. The steps
    after them are drawn towards the previous chunk with decaying weight
    (`syvla.modeling_syvla.flow_matching.continuation_weights`), and the flow fills in the rest. Nothing is kept between
    requests.

    Args:
        state: Raw state at the new observation, (D_state,): actions relative to the state are made relative to this one.

    Raises:
        ValueError: Another number of action dimensions than the robot has, or numbers that are not finite.
    """
    target, weights = torch.zeros(num_steps, width), torch.zeros(num_steps)
    if previous is None:
        return target, weights
    try:
        normalized = processor.normalize_actions(previous.actions[:num_steps], embodiment, state)
    except ValueError as error:
        raise ValueError(f"prev_chunk: {error}") from error
    overlap = len(normalized)
    target[:overlap, : normalized.shape[1]] = torch.from_numpy(normalized)
    return target, continuation_weights(min(previous.delay, overlap), overlap, num_steps)


def known_delays(previous: Sequence[PreviousChunk | None]) -> torch.Tensor | None:
    """How many actions of each chunk are known, int64 (B,); None where the chunks are continued in another way.

    Raises:
        ValueError: Both ways in one batch.
    """
    ways = {chunk.known for chunk in previous if chunk is not None}
    if len(ways) > 1:
        raise ValueError("known_actions: expected the same for the whole batch, got both")
    if ways != {True}:
        return None
    return torch.tensor([0 if chunk is None else chunk.delay for chunk in previous])


def shared_guidance(previous: Sequence[PreviousChunk | None] | None) -> float | None:
    """The guidance weight of a batch's previous chunks; None without guidance.

    Raises:
        ValueError: Different ones.
    """
    weights = {chunk.max_guidance_weight for chunk in previous or () if chunk is not None}
    if len(weights) > 1:
        raise ValueError(f"max_guidance_weight: expected the same for the whole batch, got {sorted(map(str, weights))}")
    return next(iter(weights), None)
