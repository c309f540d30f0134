"""A LeRobot policy as its own evaluation runs it: saved pre-processor, one action chunk, saved post-processor.

Written against lerobot 0.6.1: `get_policy_class`, `make_pre_post_processors` and `prepare_observation_for_inference`, in the
order of its `async_inference/policy_server.py`, without that server's pickles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor.rename_processor import RenameObservationsProcessorStep

WEIGHTS = "model.safetensors"
PROMPTS = ("task", "prompt")
_DECODED_WHOLE = ("groot",)
"""Policies whose saved post-processor reads a whole chunk: each step has statistics of its own. The others' reads steps."""
_REPEATABLE = ("diffusion",)
"""Policies with a history whose `predict_action_chunk` takes it as an axis of the batch."""


class ServedPolicy:
    """A policy that answers single observations.

    Args:
        path: Folder of a LeRobot checkpoint, or Hub id.
        device: torch device.
        revision: Of the Hub id.
        rename: Key of a request to the key that the policy's saved pre-processor expects.
        repeat_observation: Whether a policy that wants several observations gets the present one several times, as at the
            start of an episode.

    Raises:
        FileNotFoundError: If the folder lacks weights or processors.
        ValueError: If the policy cannot be served one chunk at a time; the message says why.
    """

    def __init__(
        self,
        path: str,
        device: str = "cpu",
        *,
        revision: str | None = None,
        rename: Mapping[str, str] | None = None,
        repeat_observation: bool = False,
    ) -> None:
        _check_folder(path)
        config = PreTrainedConfig.from_pretrained(path, revision=revision)
        config.device = device
        self.config, self.rename = config, dict(rename or {})
        self._repeats = self._history(repeat_observation)
        if getattr(config, "use_peft", False):
            raise ValueError(f"{path}: is an adapter (use_peft); merge it into its policy first, and serve that")
        if getattr(config, "temporal_ensemble_coeff", None) is not None:
            raise ValueError(
                f"{path}: temporal_ensemble_coeff averages the chunks of successive steps, and here no step is asked "
                "twice; set it to null in config.json, and n_action_steps to what is to be executed"
            )
        self.policy = get_policy_class(config.type).from_pretrained(path, config=config, revision=revision)
        overrides = {"device_processor": {"device": device}}
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            config, pretrained_path=path, pretrained_revision=revision, preprocessor_overrides=overrides
        )
        self.digest = _digest(path, revision)
        # GR00T's base model may execute fewer steps than the configuration asks for.
        steps = getattr(self.policy, "_action_queue_steps", getattr(config, "n_action_steps", None))
        self.action_steps: int | None = steps if isinstance(steps, int) else None

    def metadata(self) -> dict[str, Any]:
        """What a client is told when it connects."""
        told = {
            "server": "lerobot_policy_server",
            "lerobot": version("lerobot"),
            "policy_type": self.config.type,
            "policy_version": self.digest,
            "images": sorted(self.cameras()),
            "repeat_observation": self._repeats > 1,
        }
        return told | ({} if self.action_steps is None else {"action_horizon": self.action_steps})

    def cameras(self) -> dict[str, tuple[int, ...]]:
        """Keys of the images that a request must bring, as the saved pre-processor expects them, and their (C, H, W)."""
        before = {after: key for key, after in self._saved_renames().items()}
        return {
            before.get(key, key): tuple(feature.shape)
            for key, feature in (self.config.input_features or {}).items()
            if feature.type is FeatureType.VISUAL and "empty_camera" not in key
        }

    def reset(self) -> None:
        """Forgets what the policy remembers."""
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()

    def act(self, request: Mapping[str, Any]) -> np.ndarray:
        """The chunk that the policy executes before it is asked again, float32 (T, D), in the dataset's units.

        Args:
            request: Images uint8 (H, W, 3) or (3, H, W), `observation.state` (D,), and `task` or `prompt`.

        Raises:
            ValueError: If something is missing or ill-formed; names the key, what was expected and what came.
        """
        named = {self.rename.get(key, key): value for key, value in request.items()}
        prompt = next((named[key] for key in PROMPTS if key in named), None)
        if not isinstance(prompt, str):
            raise ValueError(f"task: expected an instruction, got {prompt!r:.100}")
        observation = {key: _picture(key, self._required(named, key)) for key in self.cameras()}
        for key, feature in (self.config.input_features or {}).items():
            if feature.type in (FeatureType.STATE, FeatureType.ENV):
                observation[key] = _vector(key, self._required(named, key), feature.shape)
        self.policy.reset()  # a queue of earlier actions would answer in the policy's place
        batch = prepare_observation_for_inference(observation, torch.device(self.config.device), task=prompt)
        with torch.inference_mode():
            batch = self.preprocessor(batch)
            if self._repeats > 1:
                batch = self._with_history(batch)
            chunk = self.policy.predict_action_chunk(batch)
            chunk = chunk if chunk.ndim == 3 else chunk[None]
            if self.config.type in _DECODED_WHOLE:
                chunk = self.postprocessor(chunk)[:, : self.action_steps]
            else:
                chunk = chunk[:, : self.action_steps]
                chunk = torch.stack([self.postprocessor(chunk[:, step]) for step in range(chunk.shape[1])], dim=1)
        actions: np.ndarray = chunk[0].to("cpu", torch.float32).numpy()
        return actions

    def _saved_renames(self) -> dict[str, str]:
        found = [step for step in self.preprocessor.steps if isinstance(step, RenameObservationsProcessorStep)]
        return dict(found[0].rename_map) if found else {}

    def _required(self, named: Mapping[str, Any], key: str) -> Any:
        if key not in named:
            have = sorted(name for name in named if name not in PROMPTS)
            raise ValueError(
                f"{key}: missing; the request has {have}. Start the server with --rename KEY={key} for the key that stands "
                "for it"
            )
        return named[key]

    def _history(self, repeat: bool) -> int:
        """How many observations the policy wants; refused where they cannot be made."""
        count = int(getattr(self.config, "n_obs_steps", 1) or 1)
        if count == 1:
            return 1
        if self.config.type not in _REPEATABLE:
            raise ValueError(
                f"policy {self.config.type!r}: wants the last {count} observations, of which a server sees only those at which "
                "it is asked; such a policy cannot be served here"
            )
        if not repeat:
            raise ValueError(
                f"policy {self.config.type!r}: wants the last {count} observations, of which a server sees only those at which "
                "it is asked; --repeat-observation gives it the present one that many times, which is not as in training"
            )
        return count

    def _with_history(self, batch: dict[str, Any]) -> dict[str, Any]:
        keys = set(self.config.input_features or {})
        return {
            key: value.unsqueeze(1).repeat_interleave(self._repeats, dim=1) if key in keys else value
            for key, value in batch.items()
        }


def _picture(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"{key}: expected uint8 (H, W, 3), got {array.dtype} {array.shape}")
    return np.array(array, order="C")  # a copy: what came from the network is read-only


def _vector(key: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != tuple(shape) or not np.isfinite(array).all():
        raise ValueError(f"{key}: expected finite numbers of shape {tuple(shape)}, got {array.dtype} {array.shape}")
    return np.array(array, np.float32)


def _check_folder(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith((".", "/", "~")):
            raise FileNotFoundError(f"{path}: no such folder; expected a LeRobot checkpoint")
        return  # a Hub id
    needed = ("config.json", WEIGHTS, "policy_preprocessor.json", "policy_postprocessor.json")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path}: lacks {', '.join(missing)}; expected a checkpoint as LeRobot 0.6 saves it, such as "
            "outputs/train/checkpoints/last/pretrained_model"
        )


def _digest(path: str, revision: str | None) -> str:
    """Of the weights, by which an interrupted evaluation knows the policy again."""
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(hf_hub_download(path, WEIGHTS, revision=revision))
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]
