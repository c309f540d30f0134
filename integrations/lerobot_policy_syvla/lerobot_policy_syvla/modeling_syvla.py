"""SyVLAModel as a LeRobot policy."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from syvla.modeling_syvla import SyVLAModel

from .chunk_continuation import ExecutedChunks, blended_from, continuation_options
from .configuration_syvla import LeRobotSyVLAConfig
from .processor_syvla import MODEL_INPUT_PREFIX, load_saved_processor, load_syvla_processor
from .training_data import TrainingData, train_on

logger = logging.getLogger(__name__)


class LeRobotSyVLAPolicy(PreTrainedPolicy):
    """SyVLA in LeRobot's training, evaluation and rollout.

    It takes the batches that the preprocessor of `make_syvla_pre_post_processors` makes; the actions it returns are
    normalized, and the postprocessor brings them to physical units.

    Args:
        config: Names the checkpoint, or holds the model's config.
        weights_follow: Build the model without reading `syvla_checkpoint`; `from_pretrained` loads the weights next.
        dataset_meta: LeRobot's metadata of the training data, for its thoughts.
        kwargs: Other things that LeRobot's factory passes; unused.

    Attributes:
        last_thoughts: Thoughts of the last predicted chunk, one per sample; None without thinking.
    """

    config_class = LeRobotSyVLAConfig
    name = "syvla"

    def __init__(
        self, config: LeRobotSyVLAConfig, *, weights_follow: bool = False, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(config)
        self.config: LeRobotSyVLAConfig
        model_config = config.model_config()
        robot = config.embodiment
        assert robot is not None  # settled by model_config
        if weights_follow or config.random_tiny:
            self.model = SyVLAModel(model_config)
        elif config.syvla_checkpoint:
            self.model = SyVLAModel.from_pretrained(
                config.syvla_checkpoint, revision=config.syvla_revision, dtype=torch.float32
            )
            dims = model_config.embodiments[robot]
            self.model.add_embodiment(robot, dims["state_dim"], dims["action_dim"])
        else:
            raise ValueError(
                "syvla_checkpoint: missing, so there are no weights; load a saved policy with "
                "LeRobotSyVLAPolicy.from_pretrained (--policy.path=FOLDER)"
            )
        config.set_model_config(self.model.config)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.last_thoughts: list[str] | None = None
        self.reset()
        if dataset_meta is not None:
            train_on(TrainingData(dataset_meta.root, config.thought_source))

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, strict: bool = True, **kwargs: Any
    ) -> LeRobotSyVLAPolicy:
        """Loads a LeRobot checkpoint. Missing, unexpected or mis-shaped weights raise RuntimeError with their names.

        Args:
            pretrained_name_or_path: Folder or Hub id with `config.json` and `model.safetensors`.
            strict: False accepts a checkpoint that does not fit, which LeRobot then only logs.
            kwargs: See `PreTrainedPolicy.from_pretrained`.
        """
        policy = super().from_pretrained(pretrained_name_or_path, strict=strict, weights_follow=True, **kwargs)
        policy._source = (str(pretrained_name_or_path), kwargs.get("revision"))
        return policy

    _source: tuple[str, str | None] | None = None

    # ------------------------------------------------------------------ training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Two groups: matrices, and vectors (biases, norms), which are never decayed."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": [p for p in trained if p.ndim > 1]}]
        vectors = [p for p in trained if p.ndim <= 1]
        return groups + ([{"params": vectors, "weight_decay": 0.0}] if vectors else [])

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch and its parts.

        Args:
            batch: Output of the preprocessor on frames with actions.
            reduction: "mean" gives a scalar. "none" gives (B,), for weighted samples: each sample's action loss, with the
                batch's text loss added to all of them.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction: expected 'mean' or 'none', got {reduction!r}")
        output = self.model(**_model_inputs(batch))
        parts = {"action_loss": output.action_loss, "lm_loss": output.lm_loss}
        values = {name: float(value.detach()) for name, value in parts.items() if value is not None}
        if reduction == "mean":
            return output.loss, values
        weight = self.model.config.action_loss_weight
        rest = output.loss - weight * output.action_loss
        return weight * output.action_loss_per_sample + rest, values

    # ------------------------------------------------------------------ acting

    def reset(self) -> None:
        """Forgets the actions that are still to be executed."""
        self._chunks: ExecutedChunks | None = None

    def supports_rtc(self) -> bool:
        """Asked by LeRobot's RTC engine (`--inference.type=rtc`)."""
        return True

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Any],
        noise: Tensor | None = None,
        *,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Normalized action chunks, float32 (B, chunk_size, D_action).

        Args:
            batch: Output of the preprocessor.
            noise: Initial noise of the flow, (B, chunk_size, model's widest action); None draws it.
            inference_delay: Control steps until the chunk is there, as LeRobot's RTC engine measured it; None: 0.
            prev_chunk_left_over: What is left of the running chunk at this observation, normalized, (B, L, D_action) or
                (L, D_action); the chunk goes on from it as `config.seams` and `config.rtc_config` say.
            kwargs: Further arguments of `SyVLAModel.predict_actions`, such as `generator`.
        """
        self.eval()
        delay, left_over = inference_delay or 0, prev_chunk_left_over
        rtc = self.config.rtc_config
        seams = self.config.chunk_seams(engine=left_over is not None)
        if left_over is not None and (rtc is None or rtc.enabled) and seams.asks_policy:
            shape = (self.model.config.chunk_size, self.model.config.max_action_dim)
            left_over = left_over.to(self.model.device)
            kwargs |= continuation_options(left_over, delay, rtc, seams, shape)
        chunk = self._predicted(batch, noise, kwargs)
        if left_over is not None and seams.mode == "blend":
            chunk = blended_from(chunk, left_over, delay, seams)
        return chunk

    def _predicted(self, batch: dict[str, Any], noise: Tensor | None, options: dict[str, Any]) -> Tensor:
        thinking = (
            {"max_new_tokens": self.config.max_new_tokens, "tokenizer": self.tokenizer} if self.config.think else {}
        )
        with self._autocast():
            output = self.model.predict_actions(
                **_model_inputs(batch),
                think=self.config.think,
                num_steps=self.config.num_inference_steps,
                noise=noise,
                **thinking,
                **options,
            )
        self.last_thoughts = output.thoughts
        own = self.model.config.embodiments[self.config.embodiment]["action_dim"]
        return output.actions[..., :own].float()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action, normalized, (B, D_action); predicts a chunk when `n_action_steps` have been executed.

        The chunks go over into each other as `config.seams` says; with "rtc" and "rtc_identity" the new one continues what
        has not run of the old one.
        """
        self.eval()
        if self._chunks is None:
            assert self.config.n_action_steps is not None
            self._chunks = ExecutedChunks(self.config.sync_seams(), self.config.n_action_steps)
        chunks = self._chunks
        if chunks.due:
            if chunks.seams.asks_policy and chunks.left_over is not None:
                kwargs["prev_chunk_left_over"] = chunks.left_over
            chunks.enter(self.predict_action_chunk(batch, **kwargs))
        return chunks.next_action()

    # ------------------------------------------------------------------ text

    def supports_text_generation(self) -> bool:
        """Asked by LeRobot's newer runtimes."""
        return True

    def generate_text(self, batch: dict[str, Any], **kwargs: Any) -> str:
        """The thought on one observation (a batch of one); see `generate_thoughts`."""
        thoughts = self.generate_thoughts(batch, **kwargs)
        if len(thoughts) != 1:
            raise ValueError(f"batch: generate_text takes one observation, got {len(thoughts)}; use generate_thoughts")
        return thoughts[0]

    @torch.no_grad()
    def generate_thoughts(self, batch: dict[str, Any], **kwargs: Any) -> list[str]:
        """What the model thinks of each observation, without acting. `kwargs` are those of `generate`."""
        self.eval()
        inputs = _model_inputs(batch)
        keys = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        given = {"max_new_tokens": self.config.max_new_tokens, **kwargs}
        with self._autocast():
            ids = self.model.generate(**{key: inputs[key] for key in keys if key in inputs}, **given)
        texts = self.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def tokenizer(self) -> Any:
        """Tokenizer for thoughts; from the saved preprocessor, or from the checkpoint that training started from."""
        if self.model.tokenizer is None:
            if self._source is not None:
                self.model.tokenizer = load_saved_processor(*self._source).tokenizer
            else:
                self.model.tokenizer = load_syvla_processor(self.config).tokenizer
        return self.model.tokenizer

    # ------------------------------------------------------------------ adapters and precision

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """LoRA on language model and expert; queries, adapter and this robot's coders are trained in full."""
        from syvla.training.run.adapters import target_modules

        full = ("action_queries", "adapter", f"expert.embodiments.{self.config.embodiment}")
        # PEFT wraps what it trains in full, so only single layers will do: a wrapped container cannot be indexed.
        layers = [
            f"model.{name}"
            for name, module in self.model.named_modules()
            if name.startswith(full) and next(module.parameters(recurse=False), None) is not None
        ]
        return {"target_modules": rf"model\.{target_modules('both')}", "modules_to_save": layers}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)


def _model_inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
    inputs = {
        key[len(MODEL_INPUT_PREFIX) :]: value for key, value in batch.items() if key.startswith(MODEL_INPUT_PREFIX)
    }
    if "input_ids" not in inputs:
        raise ValueError(
            f"batch: no {MODEL_INPUT_PREFIX}input_ids among {sorted(batch)}; run it through the policy's preprocessor first "
            "(make_pre_post_processors)"
        )
    return inputs
