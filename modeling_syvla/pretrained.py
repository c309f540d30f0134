"""What all SyVLA models share: initialization, strict loading, saving, text generation."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .action_expert import ExpertRMSNorm
from .configuration_syvla import SyVLAConfig
from .wrapped_vlm import WrappedVLMMixin

HUB_OPTIONS = ("revision", "cache_dir", "subfolder", "token", "local_files_only")
"""Arguments of `from_pretrained` that say where files come from."""


class StrictPreTrainedModel(PreTrainedModel):
    """Initialization of our modules, loading that never invents a weight, saving with the code of all Auto classes."""

    supports_gradient_checkpointing = True
    reentrant_checkpointing = True
    # The losses are means over the micro-batch, so accumulation divides by its number of steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    auto_map: dict[str, str] = {}
    vision_tower_name = "vision_tower"
    kept_unquantized: tuple[
        str, ...
    ] = ()  # modules that 4- and 8-bit loading leaves as they are, unless told otherwise
    hub_options: dict[str, Any] = {}  # where `from_pretrained` took the weights from

    def _init_weights(self, module: nn.Module) -> None:
        """Only our own modules come here; VLM and image encoder initialize theirs."""
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=module.embedding_dim**-0.5)
        elif isinstance(module, ExpertRMSNorm):
            init.ones_(module.weight)

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        chosen = (*args, *kwargs.values())
        if not self.reentrant_checkpointing and any(
            getattr(value, "keywords", {}).get("use_reentrant") for value in chosen
        ):
            raise ValueError(
                "gradient_checkpointing_kwargs: use_reentrant=True does not work with the gradient that Intention Decoupling "
                "takes inside the forward; set use_reentrant=False"
            )
        super()._set_gradient_checkpointing(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, allow_missing_weights: bool = False, **kwargs: Any
    ) -> Any:
        """Load a checkpoint; see [`PreTrainedModel.from_pretrained`].

        Args:
            allow_missing_weights: Accept a checkpoint that lacks weights or has them in another shape (they are then
                initialized), or has some that the model does not know. Off by default, since a silently re-initialized
                weight ruins a policy.

        Raises:
            ValueError: If weights are missing, unexpected or of another shape, which the message names all, if a file is
                damaged, or if it is an adapter of SyVLA.
        """
        _require_no_adapter(pretrained_model_name_or_path, kwargs)
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _without_own_parts(kwargs["quantization_config"], cls.kept_unquantized)
        wants_info = kwargs.pop("output_loading_info", False)
        other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        if _nests_image_encoder():
            kwargs.setdefault("key_mapping", _nested_image_encoder(cls.vision_tower_name))
        hub_options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        try:
            loaded: Any = super().from_pretrained(  # a pair, with output_loading_info
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        except SafetensorError as error:
            raise ValueError(_damage(pretrained_model_name_or_path, hub_options, error)) from error
        model, info = loaded
        # The exact commit: a branch may move on before something else is read from the same place.
        model.hub_options = {**hub_options, **_commit(pretrained_model_name_or_path, hub_options)}
        if not allow_missing_weights:
            _require_complete(info, pretrained_model_name_or_path, other_shapes, _saved_by(model))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        known = {"safe_serialization", "save_function", "use_auth_token"}  # what older callers still pass
        known |= set(inspect.signature(PreTrainedModel.save_pretrained).parameters)
        known |= set(inspect.signature(PreTrainedModel.push_to_hub).parameters)
        if unknown := sorted(set(kwargs) - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"save_pretrained: unexpected keyword {unknown[0]!r}{hint}")
        # The default would write the nested VLM under the keys of an older layout, which other readers do not know.
        kwargs.setdefault("save_original_format", False)
        kwargs.setdefault("max_shard_size", "5GB")
        # By itself only the class that saves would be listed; another one may read the same weights.
        self.config.auto_map = dict(self.auto_map)
        super().save_pretrained(save_directory, *args, **kwargs)


class SyVLAPreTrainedModel(WrappedVLMMixin, StrictPreTrainedModel):
    """What [`SyVLAModel`] and [`SyVLAForConditionalGeneration`] share."""

    config_class = SyVLAConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    model_tags = ["robotics", "vision-language-action", "vla", "syvla"]
    input_modalities = ("image", "text")  # type: ignore[assignment]  # a tuple, as in the models of transformers
    _no_split_modules = ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock", "ExpertLayer", "SiglipEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    auto_map = {
        "AutoConfig": "configuration_syvla.SyVLAConfig",
        "AutoModel": "modeling_syvla.SyVLAModel",
        "AutoModelForImageTextToText": "modeling_syvla.SyVLAForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_syvla.SyVLAForConditionalGeneration",
    }
    vision_tower_name = "expert.vision_tower"
    # The expert is small, called with widths that kernels do not take, and denoises: errors of its steps add up. The image
    # encoder's widths are odd multiples as well.
    kept_unquantized = ("expert", "adapter", "action_queries", "visual", "lm_head")


def _without_own_parts(config: Any, names: tuple[str, ...]) -> Any:
    """A copy of a quantization config (bitsandbytes, torchao, ...) that leaves the named modules out where it names none."""
    config = copy.copy(config)
    for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if isinstance(config, dict):
            if field == "llm_int8_skip_modules" and str(config.get("quant_method", "")).startswith("bitsandbytes"):
                config.setdefault(field, list(names))
        elif hasattr(config, field) and not getattr(config, field):
            setattr(config, field, list(names))
    return config


# Older transformers (seen in 5.4) keep SigLIP's and CLIP's layers one level deeper than newer ones, which read both layouts.
def _nested_image_encoder(tower: str) -> dict[str, str]:
    names = r"(embeddings\.(?:patch|position|class)_embedding\b|encoder\.layers\.|p(?:re|ost)_?lay)"
    return {rf"^{re.escape(tower)}\.{names}": rf"{tower}.vision_model.\1"}


@lru_cache(maxsize=1)
def _nests_image_encoder() -> bool:
    from transformers import SiglipVisionConfig, SiglipVisionModel  # not needed by everyone who imports the package

    with torch.device("meta"):
        encoder = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=1, vision_use_head=False))
    return hasattr(encoder, "vision_model") and any(
        n.startswith("vision_model.") for n, _ in encoder.named_parameters()
    )


def _require_no_adapter(name: Any, options: dict[str, Any]) -> None:
    """An adapter of ours may bring robots, a chunk size or queries that `transformers` would not add to its base."""
    adapter = (options.get("adapter_kwargs") or {}).get("_adapter_model_path", name)
    if adapter is not None and (Path(adapter) / "syvla_config.json").is_file():
        raise ValueError(
            f"{adapter}: this is the folder of a SyVLA adapter, not of a whole checkpoint; load it onto its base with "
            "syvla.training.run.adapters.load_adapter, or make a checkpoint of both: syvla-adapters merge BASE ADAPTER OUTPUT"
        )


def _commit(name: Any, hub_options: dict[str, Any]) -> dict[str, str]:
    """`{"revision": commit}` of a checkpoint from the Hub; empty for a folder."""
    if name is None or Path(name).is_dir():
        return {}
    config = f"{hub_options['subfolder']}/config.json" if "subfolder" in hub_options else "config.json"
    places = {key: hub_options[key] for key in ("cache_dir", "revision") if key in hub_options}
    found = re.search(
        r"snapshots/([0-9a-f]{40})/", Path(str(try_to_load_from_cache(str(name), config, **places))).as_posix()
    )
    return {"revision": found[1]} if found else {}


def _damage(name: Any, hub_options: dict[str, Any], error: Exception) -> str:
    """Which files of the checkpoint cannot be opened."""
    options = {key: value for key, value in hub_options.items() if key != "subfolder"}
    folder = Path(name) if Path(name).is_dir() else Path(str(cached_file(str(name), "config.json", **options))).parent
    damaged = []
    for path in sorted((folder / hub_options.get("subfolder", "")).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as reason:
            with path.open("rb") as file:
                if file.read(64).startswith(b"version https://git-lfs"):
                    return f"{path}: a Git LFS pointer, not the weights themselves; run `git lfs pull` in {path.parent}"
            damaged.append(f"{path}: this weight file is damaged or incomplete ({reason})")
    return "; ".join(damaged or [f"{name}: {error}"]) + ". Delete it and download the checkpoint again."


def _saved_by(model: Any) -> str:
    """A sentence about the class that saved a checkpoint, if it is another one; else empty."""
    saved, own = (getattr(model.config, "architectures", None) or [""])[0], type(model).__name__
    return f" It was saved by {saved}, and is read here as {own}." if saved not in ("", own) else ""


def _require_complete(info: Any, name: Any, other_shapes: bool, saved_by: str) -> None:
    info = info if isinstance(info, dict) else vars(info)
    kinds = {
        "missing_keys": "missing from the checkpoint",
        "unexpected_keys": "in the checkpoint but unknown to the model",
        **({} if other_shapes else {"mismatched_keys": "of another shape"}),
    }
    problems = []
    for key, text in kinds.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get(key) or ())
        if names:
            shown = ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
            problems.append(f"{len(names)} weights {text}: {shown}")
    if problems:
        raise ValueError(
            f"{name}: the checkpoint does not fit the model. {'; '.join(problems)}.{saved_by} "
            "Pass allow_missing_weights=True to load it all the same; missing weights are then initialized at random."
        )
