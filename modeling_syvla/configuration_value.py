"""Configuration of the value model of reinforcement learning (paper, section 3.3 and appendix A)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .configuration_syvla import (
    SIGLIP_BASE,
    TINY_VISION,
    VIEWS,
    SyVLAExpertConfig,
    checked_views,
    known_format_version,
    sub_config,
)
from .embodiment_fields import EmbodimentsMixin
from .own_fields import OwnModelTypeMixin

# Not used here, but by `configuration_syvla`: transformers 5.4 fetches only those files of a checkpoint that its entry file
# imports itself, not what they import in turn.
from .consistent_design import require_consistent_design  # noqa: F401  isort: skip
from .flow_solver import FlowSolver  # noqa: F401  isort: skip


class SyVLAValueConfig(EmbodimentsMixin, OwnModelTypeMixin, PreTrainedConfig):
    """Configuration of [`SyVLAValueModel`].

    The paper gives "about 100M parameters with a Siglip encoder and a transformer network". The encoder alone has 85.8 M;
    width 512 and 4 layers are ours and bring the whole to 99,305,729 parameters, and 270,336 more for a robot of 14 states.

    Args:
        vision_config: Config (or dict with `model_type`) of the image encoder: any `transformers` vision backbone.
            SigLIP-base-patch16-224 without pooling head by default.
        image_size: Side of the square images in pixels. None: the vision config's.
        embodiments: As in [`SyVLAConfig`]; give the value model the policy's, so that ids and states agree.
        views: Names of the camera views, in order.
        instruction_bytes: Longest instruction that the model reads, in bytes of UTF-8; 0: it reads none, and the same
            observation has the same value in every task.
        hidden_size: Width of the transformer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Heads of its attention.
        head_dim: Width of one head.
        ff_ratio: SwiGLU width as a multiple of `hidden_size`, rounded up to a multiple of 64.
        attention_dropout: Dropout on attention weights, in training only.
        rms_norm_eps: Epsilon of the RMS norms.
        format_version: As in [`SyVLAConfig`].
    """

    model_type = "syvla_value"
    sub_configs = {"vision_config": AutoConfig}

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        image_size: int | None = None,
        embodiments: dict[str, dict[str, int]] | None = None,
        views: list[str] | tuple[str, ...] = VIEWS,
        instruction_bytes: int = 0,
        hidden_size: int = 512,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 8,
        head_dim: int = 64,
        ff_ratio: float = 2.67,
        attention_dropout: float = 0.0,
        rms_norm_eps: float = 1e-6,
        format_version: int = 1,
        **kwargs: Any,
    ) -> None:
        self.format_version = known_format_version(format_version)
        self.vision_config = sub_config(vision_config, SIGLIP_BASE)
        self.image_size: int = image_size or int(getattr(self.vision_config, "image_size", 224))
        self._set_embodiments(embodiments)
        self.views = checked_views(views)
        if instruction_bytes < 0:
            raise ValueError(f"instruction_bytes: expected at least 0, got {instruction_bytes}")
        self.instruction_bytes = instruction_bytes
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.ff_ratio = ff_ratio
        self.attention_dropout = attention_dropout
        self.rms_norm_eps = rms_norm_eps
        self._refuse_misspelled(kwargs)
        super().__init__(**kwargs)

    def layer_config(self) -> SyVLAExpertConfig:
        """The same layer sizes in the terms of the action expert, whose attention and MLP the value model uses."""
        names = (
            "hidden_size",
            "num_attention_heads",
            "head_dim",
            "ff_ratio",
            "attention_dropout",
            "rms_norm_eps",
        )
        return SyVLAExpertConfig(**{name: getattr(self, name) for name in names})

    @classmethod
    def tiny(cls, **overrides: Any) -> SyVLAValueConfig:
        """A configuration of about 0.3 million parameters for a CPU; images and robot as in `SyVLAConfig.tiny()`."""
        fields: dict[str, Any] = {
            "vision_config": TINY_VISION,
            "image_size": 32,
            "embodiments": {"tabletop": {"state_dim": 14, "action_dim": 14}},
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 32,
        }
        return cls(**{**fields, **overrides})
