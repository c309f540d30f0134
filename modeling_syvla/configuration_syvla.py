"""Configuration of SyVLA: one vision-language model, one flow-matching action expert, many robots.

The defaults are the paper's (section 3.1, appendix A). Where the paper is silent, the docstring says "ours" and why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .consistent_design import require_choice, require_consistent_design
from .embodiment_fields import USABLE_NAME, EmbodimentsMixin
from .own_fields import OwnModelTypeMixin

# Not used here, but by `consistent_design`: transformers 5.4 fetches only those files of a checkpoint that its entry file
# imports itself, not what they import in turn.
from .flow_solver import FlowSolver  # noqa: F401  isort: skip

VIEWS = ("center", "left_wrist", "right_wrist")
"""Camera views in the order in which the model receives them (paper, appendix A: center and two wrist cameras)."""

FORMAT_VERSION = 1
"""Version of what config and weights mean. It rises when code of this version would misread newer checkpoints."""

# Qwen2.5-VL-3B-Instruct, as published in its config.json.
_QWEN2_5_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": True,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "rms_norm_eps": 1e-6,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": 151643,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
    },
}

# google/siglip-base-patch16-224, vision tower without its pooling head.
SIGLIP_BASE: dict[str, Any] = {"model_type": "siglip_vision_model", "vision_use_head": False}


def checked_views(views: Any) -> list[str]:
    """Names of views as a list.

    Raises:
        ValueError: There is none, one is no usable name, or one comes twice.
    """
    names = list(views) if isinstance(views, (list, tuple)) else []
    if not names or not all(isinstance(name, str) and USABLE_NAME.fullmatch(name) for name in names):
        raise ValueError(f"views: expected at least one name of letters, digits, '_' and '-', got {views!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"views: a name comes twice in {names}; give each view a name of its own")
    return names


class SyVLAExpertConfig(OwnModelTypeMixin, PreTrainedConfig):
    """Transformer of the action expert (paper, appendix A: 15 layers, width 1408, 32 heads, ff_ratio 2.67).

    Args:
        hidden_size: Width of the transformer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads of self- and cross-attention.
        head_dim: Width of one head. Ours: 64, which with a SwiGLU MLP gives the paper's 0.69 B parameters; the literal
            1408 / 32 = 44 gives 0.58 B and is no multiple of 8.
        ff_ratio: MLP width as a multiple of `hidden_size`, rounded up to a multiple of `ff_multiple_of`.
        ff_multiple_of: See `ff_ratio`.
        mlp_type: "swiglu" (ours: 2.67 = 8/3 is the SwiGLU ratio) or "gelu".
        cross_attention_scope: "all" tokens attend to the control condition (the paper), or only the "suffix"
            (timestep and actions), which makes the prefix independent of the condition.
        attention_dropout: Dropout on attention weights, in training only.
        rms_norm_eps: Epsilon of the RMS norms.
    """

    model_type = "syvla_expert"
    base_config_key = "expert_config"

    def __init__(
        self,
        hidden_size: int = 1408,
        num_hidden_layers: int = 15,
        num_attention_heads: int = 32,
        head_dim: int = 64,
        ff_ratio: float = 2.67,
        ff_multiple_of: int = 64,
        mlp_type: str = "swiglu",
        cross_attention_scope: str = "all",
        attention_dropout: float = 0.0,
        rms_norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        require_choice("expert_config.mlp_type", mlp_type, ("swiglu", "gelu"))
        require_choice("expert_config.cross_attention_scope", cross_attention_scope, ("all", "suffix"))
        if hidden_size % 2:
            raise ValueError(f"expert_config.hidden_size: expected an even width, got {hidden_size}")
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.ff_ratio = ff_ratio
        self.ff_multiple_of = ff_multiple_of
        self.mlp_type = mlp_type
        self.cross_attention_scope = cross_attention_scope
        self.attention_dropout = attention_dropout
        self.rms_norm_eps = rms_norm_eps
        self._refuse_misspelled(kwargs)
        super().__init__(**kwargs)

    @property
    def mlp_hidden_size(self) -> int:
        """Width of the MLP, `ff_ratio * hidden_size` rounded up to a multiple of `ff_multiple_of`."""
        width = self.hidden_size * self.ff_ratio
        return int(-(-width // self.ff_multiple_of) * self.ff_multiple_of)


class SyVLAConfig(EmbodimentsMixin, OwnModelTypeMixin, PreTrainedConfig):
    """Configuration of [`SyVLAModel`].

    Args:
        vlm_config: Config (or dict with `model_type`) of the vision-language model; Qwen2.5-VL-3B by default.
        expert_config: [`SyVLAExpertConfig`] or dict.
        expert_vision_config: Config (or dict with `model_type`) of the expert's image encoder: any `transformers` vision
            backbone. SigLIP-base-patch16-224 without pooling head by default.
        expert_image_size: Side of the square low-resolution images of the expert, in pixels. None: the vision config's.
        embodiments: Maps an embodiment (dataset) name to `{"state_dim": int, "action_dim": int}`; an `"id"` is assigned
            in order of appearance and never changes afterwards.
        views: Names of the camera views, in order; any number and any names of letters, digits, '_' and '-', since the
            prompt holds them. The paper has three. `resize_views` changes them in a trained model.
        num_query_tokens: N, the number of Feature Query Tokens (paper: 20).
        query_token_id: Id of the placeholder token that marks a Feature Query Token in `input_ids`. 151665 is the first
            unused row of Qwen2.5-VL-3B's embedding matrix.
        chunk_size: Actions predicted at once (paper: 50).
        num_inference_steps: Evaluations of the flow at inference (ours: 10, as pi0).
        flow_solver, flow_grid_power: How they become steps: "euler" on a uniform grid (1) as pi0, or "ab2", and a grid that is
            finer near the action; see `flow_solver.FlowSolver`. Both may be changed without training.
        time_beta_alpha, time_beta_beta, time_max: Training times are `t = time_max * (1 - Beta(alpha, beta))`, t = 0
            being noise and t = 1 the action (ours: pi0's distribution written in this direction).
        time_min_period, time_max_period: Periods of the sinusoidal timestep embedding.
        intention_decoupling: Whether training masks the query states with the smallest gradient (paper, section 3.2).
        decoupling_quantile: q of the threshold (paper: the 5th percentile).
        decoupling_scope: Quantile per "sample" (paper, appendix B) or over the whole "batch".
        decoupling_choice: Which states are masked: the "weakest" (the paper), or, as a control, as many at "random", or the
            "strongest".
        query_noise: Standard deviation of Gaussian noise that training adds to every query state, as a multiple of the state's
            root mean square (ours: 0, none; another control, see `intention_decoupling.noisy_states`).
        conditioning: What the expert attends to: the "query_states" (the paper), or, as a baseline, "all_hidden_states" of
            the VLM's sequence as GR00T does (paper, appendix E): prompt, thought and queries. The latter has no state to
            single out, so it needs `intention_decoupling=False`.
        action_head: "flow_matching" (the paper), or, as a baseline, "l1_regression": an MLP from the query states without
            expert, as OpenVLA-OFT (paper, appendix E).
        chunk_end: What training puts into the steps of a chunk beyond the end of an episode, or of a cleaned stretch; one
            of `CHUNK_ENDS` (the paper is silent; ours: "hold", as openpi and LeRobot). A checkpoint without the field was
            trained with "noise" and is read so.
        simulated_delay: Largest number of first actions that training gives clean, at random for each sample, as those that
            run while a chunk is computed (ours: 0, none; see `known_actions`). Such a model takes `known_actions`.
        advantage_conditioned: Whether training said in the prompt how good an action is (RECAP, `syvla-ppo --objective
            recap`); the processor's field of this name then adds "positive" to prompts that do not say.
        action_loss_weight, lm_loss_weight: Weights of the two losses (ours: 1 and 1).
        format_version: Version of the checkpoint; see `FORMAT_VERSION`. One without the field is of version 1.

    Raises:
        ValueError: If a value is impossible, or the checkpoint is of a later version than this code.
    """

    model_type = "syvla"
    sub_configs = {
        "vlm_config": AutoConfig,
        "expert_config": SyVLAExpertConfig,
        "expert_vision_config": AutoConfig,
    }

    def __init__(
        self,
        vlm_config: PreTrainedConfig | dict[str, Any] | None = None,
        expert_config: SyVLAExpertConfig | dict[str, Any] | None = None,
        expert_vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        expert_image_size: int | None = None,
        embodiments: dict[str, dict[str, int]] | None = None,
        views: list[str] | tuple[str, ...] = VIEWS,
        num_query_tokens: int = 20,
        query_token_id: int = 151665,
        chunk_size: int = 50,
        num_inference_steps: int = 10,
        flow_solver: str = "euler",
        flow_grid_power: float = 1.0,
        time_beta_alpha: float = 1.5,
        time_beta_beta: float = 1.0,
        time_max: float = 0.999,
        time_min_period: float = 4e-3,
        time_max_period: float = 4.0,
        intention_decoupling: bool = True,
        decoupling_quantile: float = 0.05,
        decoupling_scope: str = "sample",
        decoupling_choice: str = "weakest",
        query_noise: float = 0.0,
        conditioning: str = "query_states",
        action_head: str = "flow_matching",
        chunk_end: str = "hold",
        simulated_delay: int = 0,
        advantage_conditioned: bool = False,
        action_loss_weight: float = 1.0,
        lm_loss_weight: float = 1.0,
        format_version: int = 1,
        **kwargs: Any,
    ) -> None:
        self.format_version = known_format_version(format_version)
        require_choice("decoupling_scope", decoupling_scope, ("sample", "batch"))
        if not 0.0 <= decoupling_quantile < 1.0:
            raise ValueError(f"decoupling_quantile: expected a number in [0, 1), got {decoupling_quantile}")
        for name, value in (("num_query_tokens", num_query_tokens), ("chunk_size", chunk_size)):
            if value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        self.vlm_config = sub_config(vlm_config, _QWEN2_5_VL_3B)
        if isinstance(expert_config, dict) or expert_config is None:
            expert_config = SyVLAExpertConfig(**(expert_config or {}))
        self.expert_config = expert_config
        self.expert_vision_config = sub_config(expert_vision_config, SIGLIP_BASE)
        self.expert_image_size: int = expert_image_size or int(getattr(self.expert_vision_config, "image_size", 224))
        self._set_embodiments(embodiments)
        self.views = checked_views(views)
        self.num_query_tokens = num_query_tokens
        self.query_token_id = query_token_id
        self.chunk_size = chunk_size
        self.num_inference_steps = num_inference_steps
        self.flow_solver = flow_solver
        self.flow_grid_power = flow_grid_power
        self.time_beta_alpha = time_beta_alpha
        self.time_beta_beta = time_beta_beta
        self.time_max = time_max
        self.time_min_period = time_min_period
        self.time_max_period = time_max_period
        self.intention_decoupling = intention_decoupling
        self.decoupling_quantile = decoupling_quantile
        self.decoupling_scope = decoupling_scope
        self.decoupling_choice = decoupling_choice
        self.query_noise = query_noise
        self.conditioning = conditioning
        self.action_head = action_head
        self.chunk_end = chunk_end
        self.simulated_delay = simulated_delay
        self.advantage_conditioned = advantage_conditioned
        require_consistent_design(self)
        self.action_loss_weight = action_loss_weight
        self.lm_loss_weight = lm_loss_weight
        self._refuse_misspelled(kwargs)
        kwargs.setdefault("tie_word_embeddings", bool(self.vlm_config.tie_word_embeddings))
        for name in ("text_config", "image_token_id"):
            if name in kwargs:
                self._require_same(name, kwargs.pop(name))
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As [`PreTrainedConfig.from_dict`]; entries of an earlier version keep their meaning."""
        return super().from_dict({"chunk_end": "noise", **config_dict}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """As [`PreTrainedConfig.from_json_file`]; entries of an earlier version keep their meaning."""
        return cls.from_dict(json.loads(Path(json_file).read_text(encoding="utf-8")))

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.vlm_config.get_text_config(*args, **kwargs)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The language model's, under the name by which other libraries look for it; not a field of its own."""
        return self.vlm_config.get_text_config()

    @property
    def image_token_id(self) -> int:
        token_id: int = self.vlm_config.image_token_id
        return token_id

    @image_token_id.setter
    def image_token_id(self, value: int) -> None:
        self.vlm_config.image_token_id = value

    def to_dict(self) -> dict[str, Any]:
        """As [`PreTrainedConfig.to_dict`], with the entry "text_config", which PEFT looks for in the dictionary."""
        output = super().to_dict()
        output["text_config"] = output["vlm_config"].get("text_config", output["vlm_config"])
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        output = super().to_diff_dict()
        output.pop("text_config", None)  # files have it once, in "vlm_config"
        output["chunk_end"] = self.chunk_end  # also where it is the default: a file without it means another value
        return output

    def _require_same(self, name: str, value: Any) -> None:
        """Refuse a copy of an entry of `vlm_config`, as `to_dict` gives it, that says something else."""
        own = getattr(self, name)
        if isinstance(own, PreTrainedConfig):
            # As JSON, which is how a copy comes back: its keys are texts.
            own, value = (json.loads(json.dumps(x if isinstance(x, dict) else x.to_dict())) for x in (own, value))
            same = all(
                own.get(key) == entry for key, entry in value.items() if key not in ("dtype", "transformers_version")
            )
        else:
            same = own == value
        if not same:
            raise ValueError(f"{name}: differs from the same entry of vlm_config, which counts; change it there")

    @classmethod
    def tiny(cls, **overrides: Any) -> SyVLAConfig:
        """A configuration of about 1.2 million parameters that takes the same code path on a CPU.

        The token ids are those of `processing.build_tiny_processor`. The expert sees through a small convolutional
        encoder, since a vision transformer from scratch learns slowly; BiT, because its group norm lets no sample depend
        on its batch. `overrides` replace fields.
        """
        fields: dict[str, Any] = {
            "vlm_config": _tiny_qwen(),
            "expert_config": SyVLAExpertConfig(
                hidden_size=128, num_hidden_layers=3, num_attention_heads=4, head_dim=32, ff_multiple_of=32
            ),
            "expert_vision_config": TINY_VISION,
            "expert_image_size": 32,
            "embodiments": {"tabletop": {"state_dim": 14, "action_dim": 14}},
            "query_token_id": TINY_TOKEN_IDS["<|action_query|>"],
            "chunk_size": 8,
            "num_query_tokens": 8,
        }
        return cls(**{**fields, **overrides})


TINY_VISION: dict[str, Any] = {
    "model_type": "bit",
    "num_channels": 3,
    "embedding_size": 32,
    "hidden_sizes": [64, 128, 256],
    "depths": [1, 1, 1],
    "layer_type": "preactivation",
    "num_groups": 8,
}
TINY_VOCABULARY_SIZE = 480  # byte-level BPE entries before the special tokens
TINY_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|action_query|>",
)
TINY_TOKEN_IDS = {token: TINY_VOCABULARY_SIZE + i for i, token in enumerate(TINY_SPECIAL_TOKENS)}


def _tiny_qwen() -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "image_token_id": TINY_TOKEN_IDS["<|image_pad|>"],
        "video_token_id": TINY_TOKEN_IDS["<|video_pad|>"],
        "vision_start_token_id": TINY_TOKEN_IDS["<|vision_start|>"],
        "vision_end_token_id": TINY_TOKEN_IDS["<|vision_end|>"],
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "vocab_size": 512,
            "bos_token_id": TINY_TOKEN_IDS["<|endoftext|>"],
            "eos_token_id": TINY_TOKEN_IDS["<|im_end|>"],
            "pad_token_id": TINY_TOKEN_IDS["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 32,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
        },
    }


def known_format_version(version: int) -> int:
    """The version that this code writes, once it is clear that it can read `version`."""
    if version > FORMAT_VERSION:
        raise ValueError(
            f"format_version: this checkpoint is of version {version}, this code reads up to {FORMAT_VERSION}; upgrade "
            "with `pip install -U syvla`, or load it with trust_remote_code=True where syvla is not installed"
        )
    return FORMAT_VERSION


def sub_config(value: PreTrainedConfig | dict[str, Any] | None, default: dict[str, Any]) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    fields = dict(default if value is None else value)
    model_type = fields.pop("model_type", default["model_type"])
    return AutoConfig.for_model(model_type, **fields)
