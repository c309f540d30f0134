"""Policies that closed-loop evaluation can drive: a SyVLA checkpoint, the scripted expert, and one that does nothing.

A policy turns observations into action chunks in physical units. It is called with a batch of observations of several
episodes, and its answer for one of them must not depend on the others: all randomness comes from the seed of each call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .environments.base import Observation, RobotEnvironment, ScriptedExpert


@dataclass
class ActionChunks:
    """Answer of a policy to B observations.

    Attributes:
        actions: float32 (B, T, D_action), physical units of the environment's `action_names`, one row per control step.
        thoughts: B texts, or None for a policy that did not think.
    """

    actions: np.ndarray
    thoughts: list[str] | None = None


class Policy(Protocol):
    """What `evaluate_closed_loop` needs of a policy.

    Attributes:
        name: For reports and progress bars.
        chunk_size: T, the number of actions per call.
    """

    name: str
    chunk_size: int

    def identity(self) -> dict[str, Any]:
        """JSON-serialisable description that changes whenever the policy's behaviour may change."""
        ...

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        """Called after the environment was reset to the episode of `seed`."""
        ...

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """Action chunks for B observations.

        Args:
            observations: B observations.
            instructions: B task instructions.
            seeds: B seeds, unique to episode and call; the only source of randomness.
            environments: The B environments, for policies that need privileged state; others ignore them.
        """
        ...


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
        **options: Any,
    ) -> SyVLAPolicy:
        """Loads model and processor through their Auto classes.

        Args:
            path: Folder or Hub id of a checkpoint.
            embodiment: See the class.
            view_cameras: See the class.
            device: Where to run; None takes a GPU where there is one.
            dtype: Parameter dtype; "auto" keeps the checkpoint's.
            **options: `think`, `max_new_tokens`, `num_steps`, `name`.
        """
        from transformers import AutoModel, AutoProcessor

        import modeling_syvla  # noqa: F401  registers the Auto classes
        import processing.processing_syvla  # noqa: F401

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModel.from_pretrained(path, dtype=dtype).to(device)
        processor = AutoProcessor.from_pretrained(path)
        return cls(model, processor, embodiment, view_cameras, **{"name": str(path), **options})

    def identity(self) -> dict[str, Any]:
        """Weights and statistics by content, so that a copied or renamed checkpoint is the same policy."""
        return {
            "policy": "syvla",
            "weights": _weights_digest(self.model),
            "embodiment": self.embodiment,
            "statistics": _digest(self.processor.embodiments[self.embodiment]),
            "think": self.think,
            "max_new_tokens": self.max_new_tokens,
            "num_steps": self.num_steps or self.model.config.num_inference_steps,
        }

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        """Nothing to prepare: each chunk depends on the present observation only."""

    @torch.inference_mode()
    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment] = (),
    ) -> ActionChunks:
        """See `Policy.predict`. The flow's initial noise of each sample is drawn from its own seed."""
        inputs = self.processor(
            images=[self._views(observation) for observation in observations],
            text=list(instructions),
            state=[np.asarray(observation["state"], dtype=np.float32) for observation in observations],
            embodiment=[self.embodiment] * len(observations),
        ).to(self.model.device)
        generation: dict[str, Any] = {"tokenizer": self.processor.tokenizer} if self.think else {}
        if self.max_new_tokens is not None:
            generation["max_new_tokens"] = self.max_new_tokens
        output = self.model.predict_actions(
            **inputs,
            think=self.think,
            num_steps=self.num_steps,
            noise=self._noise(seeds).to(self.model.device),
            **generation,
        )
        actions = self.processor.decode_actions(output.actions.float().cpu(), self.embodiment)
        return ActionChunks(np.asarray(actions, dtype=np.float32), output.thoughts)

    def _views(self, observation: Observation) -> dict[str, np.ndarray]:
        images = observation["images"]
        missing = sorted(set(self.view_cameras.values()) - set(images))
        if missing:
            raise ValueError(
                f"observation images: cameras {missing} are missing, got {sorted(images)}; fix view_cameras"
            )
        return {view: images[camera] for view, camera in self.view_cameras.items()}

    def _noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """(B, T, D_max) float32; drawn on the CPU so that every device sees the same values."""
        shape = (self.chunk_size, self.model.config.max_action_dim)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class ExpertPolicy:
    """The environment's scripted expert, which sees the simulator's state: what the task allows at best."""

    name = "expert"
    chunk_size = 1

    def __init__(self) -> None:
        self._experts: WeakKeyDictionary[RobotEnvironment, ScriptedExpert] = WeakKeyDictionary()

    def identity(self) -> dict[str, Any]:
        return {"policy": "expert"}

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        from .environments import make_expert

        if environment not in self._experts:
            self._experts[environment] = make_expert(environment)
        self._experts[environment].reset()

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """See `Policy.predict`."""
        answers = [self._experts[environment].act() for environment in environments]
        actions = np.stack([np.asarray(action, dtype=np.float32) for action, _ in answers])[:, None]  # (B, 1, D)
        return ActionChunks(actions, [thought for _, thought in answers])


class StillPolicy:
    """Commands the present joint positions, so that the robot holds still: its success would be a broken task."""

    name = "still"
    chunk_size = 1

    def identity(self) -> dict[str, Any]:
        return {"policy": "still"}

    def start_episode(self, environment: RobotEnvironment, seed: int) -> None:
        """Nothing to prepare."""

    def predict(
        self,
        observations: Sequence[Observation],
        instructions: Sequence[str],
        *,
        seeds: Sequence[int],
        environments: Sequence[RobotEnvironment],
    ) -> ActionChunks:
        """See `Policy.predict`.

        Raises:
            ValueError: If action and state are different quantities, so that holding still has no meaning.
        """
        for environment in environments:
            if len(environment.state_names) != len(environment.action_names):
                raise ValueError(
                    f"policy 'still': needs actions that are target states, but {environment.embodiment!r} has "
                    f"{len(environment.state_names)} state and {len(environment.action_names)} action dimensions"
                )
        return ActionChunks(np.stack([observation["state"] for observation in observations])[:, None])  # (B, 1, D)


BASELINES: dict[str, type[ExpertPolicy] | type[StillPolicy]] = {"expert": ExpertPolicy, "still": StillPolicy}


def load_policy(model: str, environment: RobotEnvironment, **options: Any) -> Policy:
    """A policy for `environment`.

    Args:
        model: "expert", "still", or folder or Hub id of a checkpoint.
        environment: Gives embodiment and cameras.
        **options: For a checkpoint: see `SyVLAPolicy.from_pretrained`.

    Raises:
        FileNotFoundError: If `model` is the path of a folder that does not exist.
    """
    if model in BASELINES:
        return BASELINES[model]()
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"model: {model} is not a folder; expected a checkpoint, or one of {sorted(BASELINES)}")
    return SyVLAPolicy.from_pretrained(model, environment.embodiment, environment.view_cameras, **options)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda leaf: np.asarray(leaf).tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_digest(model: torch.nn.Module) -> str:
    """Digest of exact integer checksums of every parameter and buffer; cheap, and the same on every device."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, tensor in model.state_dict().items():
        bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
        sums[name] = int(bits.sum(dtype=torch.int64))
    return _digest(sums)
