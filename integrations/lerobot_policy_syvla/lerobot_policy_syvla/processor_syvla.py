"""LeRobot's pre- and postprocessor of SyVLA: SyVLAProcessor as two registered steps.

The steps between them keep the names that LeRobot's command lines override (`rename_observations_processor`,
`normalizer_processor`, `unnormalizer_processor`, `device_processor`); LeRobot's own normalization is the identity.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.processor import PolicyProcessorPipeline, ProcessorStep, ProcessorStepRegistry, TransitionKey
from lerobot.processor.factory import make_default_policy_processor_steps, make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_STATE, POLICY_PREPROCESSOR_DEFAULT_NAME

from .configuration_syvla import LeRobotSyVLAConfig
from .training_data import TrainingData, training_thoughts

MODEL_INPUT_PREFIX = "observation.syvla."
_FILE_PREFIX = "file/"
_PROCESSOR_FILES = (".json", ".jinja", ".txt")  # code that ships with a checkpoint is not taken along


@ProcessorStepRegistry.register("syvla_inputs_processor")
@dataclass
class SyVLAInputsStep(ProcessorStep):
    """Images, state, instruction and, in training, actions and thoughts to the inputs of SyVLAModel.

    The inputs go into the observation under `observation.syvla.*`; the camera images, no longer needed, leave it. The
    files of the SyVLAProcessor (tokenizer, image processors, statistics) are this step's state, byte for byte, so that a
    saved preprocessor is complete.

    Args:
        embodiment: Robot whose dimensions and statistics apply.
        cameras: View to camera feature.
        processor: SyVLAProcessor; None when the state is loaded next.
    """

    embodiment: str
    cameras: dict[str, str]
    processor: Any = field(default=None, repr=False)

    def __call__(self, transition: Any) -> Any:
        if self.processor is None:
            raise RuntimeError("syvla_inputs_processor: no SyVLAProcessor; load the pipeline with from_pretrained")
        new = transition.copy()
        observation = dict(new.get(TransitionKey.OBSERVATION) or {})
        extra = new.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        actions = new.get(TransitionKey.ACTION)
        items = self._items(observation, extra, actions)
        inputs = self.processor.collate(items, padding_side="left" if actions is None else "right")
        for key in self.cameras.values():
            observation.pop(key, None)
        observation.update({f"{MODEL_INPUT_PREFIX}{name}": value for name, value in inputs.items()})
        new[TransitionKey.OBSERVATION] = observation
        return new

    def _items(self, observation: dict[str, Any], extra: dict[str, Any], actions: Any) -> list[dict[str, Any]]:
        """One item per sample, as `RobotDataset` gives them."""
        if OBS_STATE not in observation:
            raise ValueError(f"{OBS_STATE}: missing from the observation, which has {sorted(observation)}")
        states = _array(observation[OBS_STATE], np.float32)
        views = {view: _images(key, observation[key]) for view, key in self.cameras.items() if key in observation}
        if not views:
            raise ValueError(
                f"images: expected at least one of {list(self.cameras.values())}, got {sorted(observation)}"
            )
        texts = extra.get("task")
        texts = [texts] * len(states) if isinstance(texts, str) else texts
        if texts is None or len(texts) != len(states):
            raise ValueError(f"task: expected an instruction for each of {len(states)} samples, got {texts!r:.100}")
        items: list[dict[str, Any]] = [
            {
                "images": {view: images[row] for view, images in views.items()},
                "text": texts[row],
                "embodiment": self.embodiment,
                "state": states[row],
            }
            for row in range(len(states))
        ]
        if actions is not None:
            self._add_targets(items, extra, actions)
        return items

    def _add_targets(self, items: list[dict[str, Any]], extra: dict[str, Any], actions: Any) -> None:
        chunks, pads = _array(actions, np.float32), extra.get(f"{ACTION}_is_pad")
        thoughts = training_thoughts(extra.get("index"))
        for row, item in enumerate(items):
            item["actions"] = chunks[row]
            item["action_is_pad"] = None if pads is None else _array(pads[row], bool)
            item["thought"] = None if thoughts is None else thoughts[row]

    # ------------------------------------------------------------------ saved form

    def get_config(self) -> dict[str, Any]:
        return {"embodiment": self.embodiment, "cameras": dict(self.cameras)}

    def state_dict(self) -> dict[str, torch.Tensor]:
        if self.processor is None:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self.processor.save_pretrained(folder)
            return {
                f"{_FILE_PREFIX}{path.name}": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
                for path in sorted(Path(folder).iterdir())
                if path.suffix in _PROCESSOR_FILES and path.stat().st_size
            }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        from syvla.processing import SyVLAProcessor

        with tempfile.TemporaryDirectory() as folder:
            for key, value in state.items():
                name = key.removeprefix(_FILE_PREFIX)
                if not key.startswith(_FILE_PREFIX) or Path(name).name != name or not name.endswith(_PROCESSOR_FILES):
                    raise ValueError(
                        f"syvla_inputs_processor: {key!r} in the saved state is no file of a SyVLAProcessor"
                    )
                (Path(folder) / name).write_bytes(value.cpu().numpy().tobytes())
            self.processor = SyVLAProcessor.from_pretrained(folder)

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


@ProcessorStepRegistry.register("syvla_actions_processor")
@dataclass
class SyVLAActionsStep(ProcessorStep):
    """Normalized actions (..., D_action) to physical units, float32.

    Args:
        statistics: Per-dimension statistics of the embodiment's actions.
        normalization: The mode they were normalized with.
    """

    statistics: dict[str, list[float]]
    normalization: str

    def __call__(self, transition: Any) -> Any:
        from syvla.processing.normalization import unnormalize

        new = transition.copy()
        action = new.get(TransitionKey.ACTION)
        if action is not None:
            new[TransitionKey.ACTION] = unnormalize(action.float(), self.statistics, self.normalization)
        return new

    def get_config(self) -> dict[str, Any]:
        return {"statistics": self.statistics, "normalization": self.normalization}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


def make_syvla_pre_post_processors(
    config: LeRobotSyVLAConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Pipelines for a policy that starts from a SyVLA checkpoint; LeRobot finds this function by its name.

    Args:
        config: The policy's config.
        dataset_stats: LeRobot's statistics by feature; used where `config.statistics` says so.

    Raises:
        ValueError: Statistics are missing, or processor and model do not belong together.
    """
    processor = load_syvla_processor(config)
    model_config = config.model_config()
    name, cameras = config.embodiment, config.cameras
    assert name is not None  # both settled by model_config
    assert cameras is not None
    if config.statistics == "dataset" or (config.statistics == "auto" and name not in processor.embodiments):
        found = _dataset_statistics(config, dataset_stats)
        modes = dict.fromkeys(found, config.normalization)
        processor.set_embodiment(name, found, modes, action_names=config.action_feature_names)
    elif name not in processor.embodiments:
        raise ValueError(
            f"statistics: the checkpoint has none for embodiment {name!r}; use --policy.statistics=dataset"
        )
    processor.embodiments[name]["id"] = model_config.embodiments[name]["id"]
    if problems := processor.disagreements(model_config):
        raise ValueError("processor and model do not belong together: " + "; ".join(problems))
    robot = processor.embodiments[name]
    inputs = SyVLAInputsStep(embodiment=name, cameras=dict(cameras), processor=processor)
    actions = SyVLAActionsStep(robot["statistics"]["action"], robot["normalization"]["action"])
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        # Before the device step: images are read on the CPU, and only the model's inputs move.
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.normalize, inputs, steps.to_device],
        output_steps=[steps.unnormalize, actions, steps.to_cpu],
    )


def load_syvla_processor(config: LeRobotSyVLAConfig) -> Any:
    """SyVLAProcessor of the checkpoint that a policy starts from."""
    from syvla.processing import SyVLAProcessor, build_tiny_processor

    if config.random_tiny:
        return build_tiny_processor()
    if not config.syvla_checkpoint:
        config.model_config()  # says what is missing
        raise ValueError(
            "syvla_checkpoint: missing; a saved policy has its processor in policy_preprocessor.json instead"
        )
    return SyVLAProcessor.from_pretrained(config.syvla_checkpoint, revision=config.syvla_revision)


def load_saved_processor(source: str, revision: str | None = None) -> Any:
    """SyVLAProcessor inside a saved LeRobot checkpoint (folder or Hub id)."""
    pipeline = PolicyProcessorPipeline.from_pretrained(
        source, config_filename=f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", revision=revision,
        overrides={"device_processor": {"device": "cpu"}},
    )  # fmt: skip
    return next(step.processor for step in pipeline.steps if isinstance(step, SyVLAInputsStep))


def _array(value: Any, dtype: type) -> np.ndarray:
    return torch.as_tensor(value).detach().cpu().numpy().astype(dtype, copy=False)


def _images(key: str, value: Any) -> np.ndarray:
    """LeRobot's images (B, 3, H, W), float in [0, 1] or uint8, as uint8 (B, H, W, 3)."""
    tensor = torch.as_tensor(value).detach()
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise ValueError(f"{key}: expected (B, 3, H, W), got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        tensor = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"{key}: expected float in [0, 1] or uint8, got {tensor.dtype}")
    return tensor.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _dataset_statistics(
    config: LeRobotSyVLAConfig, dataset_stats: dict[str, dict[str, Any]] | None
) -> dict[str, dict[str, list[float]]]:
    """Statistics of "state" and "action": exact ones where the dataset is at hand, else LeRobot's."""
    meta = getattr(config, "_runtime_dataset_meta", None)  # set by LeRobot's make_policy
    exact = None if meta is None else TrainingData(meta.root, None).statistics()
    if exact is not None:
        return exact
    stats = dataset_stats or {}
    if missing := [key for key in (OBS_STATE, ACTION) if key not in stats]:
        raise ValueError(
            f"dataset_stats: {missing} missing; the checkpoint has no statistics for embodiment {config.embodiment!r}, so "
            "they must come from a dataset"
        )
    return {
        kind: {name: np.asarray(value, dtype=np.float64).ravel().tolist() for name, value in stats[key].items()}
        for kind, key in (("state", OBS_STATE), ("action", ACTION))
    }
