"""Configuration of the SyVLA policy for LeRobot (`--policy.type=syvla`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from syvla.modeling_syvla import SyVLAConfig
from syvla.serving.contract.chunk_seams import Seams

STATISTICS_SOURCES = ("auto", "checkpoint", "dataset")
NORMALIZATIONS = ("mean_std", "quantile", "min_max", "identity")
DTYPES = ("float32", "bfloat16")


def _no_normalization() -> dict[str, NormalizationMode]:
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("syvla")
@dataclass
class LeRobotSyVLAConfig(PreTrainedConfig):
    """Options of the policy; every field is `--policy.<field>` on LeRobot's command lines.

    LeRobot finds the policy's class by name: `<Name>Config` here, `<Name>Policy` in `modeling_syvla`.

    Attributes:
        syvla_checkpoint: Folder or Hub id of a SyVLA checkpoint (transformers layout) to start from.
        syvla_revision: Its branch, tag or commit.
        random_tiny: Start from random weights of 1.2 million parameters instead, to try the installation on a CPU.
        embodiment: Name of the robot in the checkpoint. One that the checkpoint does not have is added to it. None takes
            the checkpoint's only robot, or "robot" where it has none.
        cameras: View to camera feature, `{"center": "observation.images.head"}`. None infers it from the names.
        statistics: Normalize with the statistics of the "checkpoint" or of the "dataset"; "auto": the checkpoint's if it
            knows the embodiment, else the dataset's. Both travel with the saved checkpoint.
        normalization: How the dataset's statistics are used: "mean_std" (the paper), "quantile",
            "min_max" or "identity".
        thought_source: Thoughts to train: "auto" takes the sub-tasks of `language_persistent` where the dataset has them,
            another text is the name of a text column, None trains actions alone.
        chunk_size: Actions predicted at once; always the checkpoint's, None reads it there.
        n_action_steps: How many of them are executed before the next prediction; None: all.
        think: Generate a thought before each chunk.
        max_new_tokens: Its longest length in tokens.
        num_inference_steps: Euler steps of the flow; None: the checkpoint's.
        seams: How a chunk goes over into the next: "switch", "blend", "ensemble", "rtc", "rtc_identity" or "rtc_trained", see
            `syvla.serving.contract.chunk_seams`. None: "rtc" where LeRobot's RTC engine asks, else "switch".
        blend_steps: Of "blend", in control steps; None: 4.
        ensemble_decay: Of "ensemble", per chunk; None: 0.01.
        rtc_config: How LeRobot's RTC engine continues chunks; set by `lerobot-rollout --inference.type=rtc`.
        dtype: "bfloat16" runs training and inference under autocast; weights are held in float32 either way.
        gradient_checkpointing: Save memory in training, at the cost of a second forward pass.
        syvla_config: The model's own config; filled in, so that a saved policy does not need `syvla_checkpoint`.
        action_feature_names: Names of the action's dimensions; filled in from the dataset.
        normalization_mapping: LeRobot's own normalization: none, since SyVLA's processor does it.
        optimizer_lr ... scheduler_decay_lr: The paper's fine-tuning (table 7), as in `training/recipes/finetune.yaml`.
    """

    syvla_checkpoint: str | None = None
    syvla_revision: str | None = None
    random_tiny: bool = False
    embodiment: str | None = None
    cameras: dict[str, str] | None = None
    statistics: str = "auto"
    normalization: str = "mean_std"
    thought_source: str | None = "auto"
    chunk_size: int | None = None
    n_action_steps: int | None = None
    think: bool = False
    max_new_tokens: int = 128
    num_inference_steps: int | None = None
    seams: str | None = None
    blend_steps: int | None = None
    ensemble_decay: float | None = None
    rtc_config: RTCConfig | None = None
    dtype: str = "float32"
    gradient_checkpointing: bool = False
    syvla_config: dict | None = None
    action_feature_names: list[str] | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_no_normalization)
    optimizer_lr: float = 3e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.995)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.0
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 1000
    scheduler_decay_steps: int = 20_000
    scheduler_decay_lr: float = 3e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice("statistics", self.statistics, STATISTICS_SOURCES)
        _require_choice("normalization", self.normalization, NORMALIZATIONS)
        _require_choice("dtype", self.dtype, DTYPES)
        if self.n_obs_steps != 1:
            raise ValueError(
                f"n_obs_steps: SyVLA acts on the present observation alone, expected 1, got {self.n_obs_steps}"
            )
        if any(mode is not NormalizationMode.IDENTITY for mode in self.normalization_mapping.values()):
            raise ValueError(
                "normalization_mapping: SyVLA's processor normalizes, so LeRobot's must be IDENTITY throughout; choose the "
                "mode with --policy.normalization"
            )
        if self.random_tiny and self.syvla_checkpoint:
            raise ValueError("random_tiny, syvla_checkpoint: give one of the two, not both")
        self.chunk_seams()
        if self.syvla_config is None:
            self._read_model_config()
        if self.syvla_config is not None:
            self._set_chunk_size(int(self.syvla_config["chunk_size"]))

    def _read_model_config(self) -> None:
        """Takes the model's config from the checkpoint: LeRobot cuts action chunks before it makes the policy."""
        if self.random_tiny:
            self.set_model_config(SyVLAConfig.tiny(embodiments={}))
        elif self.syvla_checkpoint:
            self.set_model_config(SyVLAConfig.from_pretrained(self.syvla_checkpoint, revision=self.syvla_revision))

    def _set_chunk_size(self, size: int) -> None:
        if self.chunk_size not in (None, size):
            raise ValueError(
                f"chunk_size: the checkpoint predicts {size} actions at once, got {self.chunk_size}; leave it out"
            )
        self.chunk_size = size
        if self.n_action_steps is None:
            self.n_action_steps = size
        if not 1 <= self.n_action_steps <= size:
            raise ValueError(f"n_action_steps: expected 1 to chunk_size={size}, got {self.n_action_steps}")

    def chunk_seams(self, engine: bool = False) -> Seams:
        """`seams` with its options.

        Args:
            engine: Whether LeRobot's RTC engine asks for the chunk.

        Raises:
            ValueError: An unknown mode, an option of another mode, or a mode that cannot be had there.
        """
        seams = Seams(
            self.seams or ("rtc" if engine else "switch"),  # type: ignore[arg-type]
            blend_steps=self.blend_steps,
            decay=self.ensemble_decay,
        )
        if engine and seams.mode == "ensemble":
            raise ValueError(
                "seams: 'ensemble' needs all older chunks, and LeRobot's RTC engine passes the last one alone; take 'blend', "
                "'rtc' or 'rtc_identity', or --inference.type=sync"
            )
        return seams

    def sync_seams(self) -> Seams:
        """`chunk_seams` for LeRobot's synchronous loop, where chunks overlap only if the next comes before their end."""
        seams = self.chunk_seams()
        if seams.mode != "switch" and self.n_action_steps == self.chunk_size:
            raise ValueError(
                f"seams: {seams.mode!r} has an effect where chunks overlap, so it needs n_action_steps below chunk_size="
                f"{self.chunk_size}, got {self.n_action_steps}; lower it, or leave seams out"
            )
        return seams

    # ------------------------------------------------------------------ the model's config

    def set_model_config(self, config: SyVLAConfig) -> None:
        self.syvla_config = json.loads(config.to_json_string(use_diff=False))

    def model_config(self) -> SyVLAConfig:
        """The model's config, with this policy's robot among its embodiments.

        Raises:
            ValueError: No checkpoint was named, or it knows the robot with other dimensions.
        """
        if self.syvla_config is None:
            raise ValueError(
                "syvla_checkpoint: missing; name a SyVLA checkpoint with --policy.syvla_checkpoint=FOLDER_OR_HUB_ID, continue "
                "a LeRobot checkpoint with --policy.path=FOLDER, or try --policy.random_tiny=true"
            )
        config = SyVLAConfig.from_dict(self.syvla_config)
        self.validate_features()
        self.embodiment = self._embodiment_name(config)
        state, action = self.robot_state_feature, self.action_feature
        assert state is not None
        assert action is not None
        known = config.embodiments.get(self.embodiment)
        wanted = {"state_dim": state.shape[0], "action_dim": action.shape[0]}
        if known is not None and wanted != {key: known[key] for key in wanted}:
            raise ValueError(
                f"embodiment: the checkpoint knows {self.embodiment!r} with {known['state_dim']} state and "
                f"{known['action_dim']} action dimensions, the data has {wanted['state_dim']} and {wanted['action_dim']}; "
                "add your robot under a name of its own with --policy.embodiment=NAME"
            )
        config.add_embodiment(self.embodiment, **wanted)
        return config

    def _embodiment_name(self, config: SyVLAConfig) -> str:
        if self.embodiment is not None:
            return self.embodiment
        if len(config.embodiments) > 1:
            raise ValueError(
                f"embodiment: the checkpoint knows {sorted(config.embodiments)}; choose one with --policy.embodiment=NAME, "
                "or another name to add your robot"
            )
        return next(iter(config.embodiments), "robot")

    # ------------------------------------------------------------------ what LeRobot asks

    def validate_features(self) -> None:
        """Checks that there are a state, an action and cameras for the views, and settles `cameras`."""
        from syvla.processing.transforms import infer_cameras

        for kind, feature, key in (
            ("input", self.robot_state_feature, OBS_STATE),
            ("output", self.action_feature, ACTION),
        ):
            if feature is None or len(feature.shape) != 1:
                found = list(getattr(self, f"{kind}_features") or {})
                raise ValueError(f"{kind}_features: SyVLA needs the vector {key!r}, got {found}")
        available = list(self.image_features)
        if self.cameras is None:
            self.cameras = infer_cameras(available)
        views = list((self.syvla_config or {}).get("views", self.cameras))
        if unknown := sorted(set(self.cameras) - set(views)):
            raise ValueError(f"cameras: unknown views {unknown}; this checkpoint has {views}")
        if missing := sorted(set(self.cameras.values()) - set(available)):
            raise ValueError(f"cameras: {missing} are no cameras of the data, which has {available}")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        if self.chunk_size is None:
            self.model_config()  # says what is missing
        return list(range(self.chunk_size or 0))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
