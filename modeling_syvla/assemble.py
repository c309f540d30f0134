"""A SyVLA checkpoint out of pretrained parts: a Qwen-VL model and the expert's image encoder.

`python -m syvla.modeling_syvla.assemble` (and `syvla-assemble`) write the processor as well.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.tokenization_utils_base import AddedToken

from .checkpoint_parts import (
    Part,
    match,
    new_checkpoint_folder,
    open_part,
    parse_dtype,
    require_new,
    require_supported_vlm,
    save_without_weights,
    vision_tower_names,
    vlm_names,
)
from .configuration_syvla import SyVLAConfig
from .fresh_weights import FreshTensor, FreshWeights, seeded
from .tensor_files import MemoryTensor, TensorSource, cast, nbytes, stored_dtype, write_checkpoint

logger = logging.getLogger(__name__)

QUERY_TOKEN = "<|action_query|>"
_VLM, _TOWER = "vlm.", "expert.vision_tower."
Source: TypeAlias = str | Path | PreTrainedModel


@dataclass
class Assembly:
    """What an assembled model consists of, before any weight has been read.

    Attributes:
        model: The model on the meta device; its config is the checkpoint's.
        tensors: Where each of its tensors comes from, in the model's order; tied ones once.
        dtype: Dtype that the checkpoint loads with.
        tokenizer: The VLM's, or None when it was not needed.
        report: Origins, revisions, seed and parameter counts.
    """

    model: PreTrainedModel
    tensors: dict[str, TensorSource]
    dtype: torch.dtype
    tokenizer: Any
    report: dict[str, Any]


def assemble_checkpoint(
    vlm: Source,
    vision_tower: Source | None,
    output: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    processor: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a SyVLA checkpoint, tensor by tensor; memory stays below one shard, whatever the model's size.

    The VLM's tensors are its source's, bit for bit; so are the image encoder's (text tower and pooling head are left
    out). All else is initialized as the model initializes itself, in float32, the same for the same seed. `output`
    appears when it is complete.

    Args:
        vlm: Qwen-VL checkpoint: folder, Hub id, or model. See `VLM_FAMILIES` for the families.
        vision_tower: SigLIP checkpoint (vision only or two-tower), or another vision model that takes `pixel_values`.
            None initializes the config's image encoder.
        output: Folder to create; must not exist or be empty.
        dtype: Convert all floating-point tensors; None keeps each one's own.
        max_shard_size: Largest file, in bytes or like "5GB".
        processor: Saved into the checkpoint as well: an object with `save_pretrained`, or a function that makes one from
            the config before anything is written.
        options: `embodiments`, `config_overrides`, `seed`, `tokenizer`, `vlm_revision`, `vision_tower_revision`,
            `model_class`; see [`plan_assembly`].

    Returns:
        Report, also in the checkpoint's `assembly.json`: origins, dtype, seed, parameter counts, bytes.

    Raises:
        ValueError: If a part is unsupported, damaged, or does not fit its config; if the embedding has no room for the query
            token.
        FileExistsError: If `output` is not empty.
    """
    require_new(output)
    plan = plan_assembly(vlm, vision_tower, dtype=dtype, **options)
    if processor is not None and not hasattr(processor, "save_pretrained"):
        processor = processor(plan.model.config)
    size = sum(nbytes(source, parse_dtype(dtype)) for source in plan.tensors.values())
    report = {**plan.report, "bytes": size}
    with new_checkpoint_folder(output, size) as folder:
        save_without_weights(plan.model, folder, plan.dtype)
        write_checkpoint(folder, plan.tensors, max_shard_size, parse_dtype(dtype))
        if processor is not None:
            processor.save_pretrained(folder)
        (folder / "assembly.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    logger.info("assembled %s: %s", output, report)
    return report


def from_vlm(
    vlm: Source,
    vision_tower: Source | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A SyVLA model in memory, with the same weights as [`assemble_checkpoint`] followed by `from_pretrained`.

    Args:
        vlm, vision_tower: As for [`assemble_checkpoint`]. The weights of a model object are not copied: they become the
            new model's, unless dtype or device differ.
        dtype: Dtype of the whole model; None: the VLM's.
        device: None: that of `vlm` if it is a model, else the CPU.
        options: See [`plan_assembly`].

    Returns:
        Model in evaluation mode.
    """
    plan = plan_assembly(vlm, vision_tower, dtype=dtype, **options)
    if device is None:
        device = vlm.device if isinstance(vlm, PreTrainedModel) else "cpu"
    with no_init_weights():
        model = type(plan.model)._from_config(plan.model.config, dtype=plan.dtype)
    weights = {}
    for name, source in plan.tensors.items():
        weights[name] = cast(source.read(), stored_dtype(source, plan.dtype), name).to(device)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.generation_config = plan.model.generation_config
    model.tokenizer = plan.tokenizer
    assembled: PreTrainedModel = model.to(device).eval()
    return assembled


def plan_assembly(
    vlm: Source,
    vision_tower: Source | None,
    *,
    embodiments: Mapping[str, Mapping[str, int]] | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    vlm_revision: str | None = None,
    vision_tower_revision: str | None = None,
    model_class: Any = None,
) -> Assembly:
    """Check the parts against the model that they are to become.

    Args:
        vlm, vision_tower, dtype: See [`assemble_checkpoint`].
        embodiments: Name -> `{"state_dim": int, "action_dim": int}`; more can be added to the model later.
        config_overrides: Fields of `SyVLAConfig`, such as `expert_config` or `chunk_size`.
        seed: Seed of the weights that no part gives.
        tokenizer: The VLM's tokenizer; None: the one saved with it. Not needed when `config_overrides` has a
            `query_token_id`.
        vlm_revision, vision_tower_revision: Branch, tag or commit on the Hub.
        model_class: Class to build, `SyVLAModel` by default.
    """
    if model_class is None:
        model_class = MODEL_MAPPING[SyVLAConfig]  # `SyVLAModel`, whose own module imports this one
    target_dtype = parse_dtype(dtype)
    overrides = dict(config_overrides or {})
    for field, source in (("vlm_config", vlm), ("expert_vision_config", vision_tower), ("embodiments", embodiments)):
        if source is not None and field in overrides:
            raise ValueError(f"config_overrides.{field}: given by another argument; leave it out")
    known = inspect.signature(model_class.config_class.__init__).parameters
    if unknown := sorted(set(overrides) - set(known)):
        name = model_class.config_class.__name__
        raise ValueError(f"config_overrides: {name} has no {', '.join(unknown)}; it has {', '.join(list(known)[1:-1])}")
    vlm_part = open_part("vlm", vlm, vlm_revision)
    require_supported_vlm(vlm_part)
    fields: dict[str, Any] = {"vlm_config": vlm_part.config}
    tower_part = None
    if vision_tower is not None:
        tower_part = open_part("vision_tower", vision_tower, vision_tower_revision)
        fields["expert_vision_config"] = _vision_config(tower_part.config)
    if embodiments is not None:
        fields["embodiments"] = {name: dict(dims) for name, dims in embodiments.items()}
    if "query_token_id" not in overrides:
        tokenizer = tokenizer or _tokenizer_of(vlm_part)
        fields["query_token_id"] = query_token_id(tokenizer)
    config = model_class.config_class(**{**fields, **overrides})
    _require_room(config)
    main_dtype = target_dtype or vlm_part.dtype
    for part in _with_sub_configs(config):
        part.dtype, part._name_or_path = main_dtype, ""  # no path of this machine in the checkpoint
    with torch.device("meta"):
        model = model_class(config)
    model.generation_config = _generation_config(vlm_part)
    tensors = _sources(model, vlm_part, tower_part, seed)
    report = {
        "vlm": {"origin": vlm_part.origin, "revision": vlm_part.revision},
        "vision_tower": tower_part and {"origin": tower_part.origin, "revision": tower_part.revision},
        "seed": seed,
        "dtype": str(main_dtype).removeprefix("torch."),
        "parameters": _parameter_counts(model, tower_part is not None),
    }
    return Assembly(model, tensors, main_dtype, tokenizer, report)


def query_token_id(tokenizer: Any) -> int:
    """Id that the query token has, or gets when a processor adds it. The tokenizer stays as it is."""
    known: int | None = tokenizer.get_vocab().get(QUERY_TOKEN)
    if known is not None:
        return known
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(QUERY_TOKEN, special=True, normalized=False)], special_tokens=True)
    new: int = tokenizer.convert_tokens_to_ids(QUERY_TOKEN)
    return new


# ---------------------------------------------------------------------- config


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The vision half of a two-tower config; SigLIP without its pooling head, whose output the expert does not use."""
    config = getattr(config, "vision_config", config)
    if config.model_type == "siglip_vision_model":
        config.vision_use_head = False
    return config


def _with_sub_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for name in config.sub_configs:
        if isinstance(sub := getattr(config, name, None), PreTrainedConfig):
            yield from _with_sub_configs(sub)


def _tokenizer_of(vlm: Part) -> Any:
    place = vlm.folder or (vlm.model.name_or_path if vlm.model is not None else None)
    advice = "Pass tokenizer=..., or config_overrides={'query_token_id': ...}"
    if not place:
        raise ValueError(f"tokenizer: the vlm was not loaded from a checkpoint, so its tokenizer is unknown. {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer: none could be loaded from {place} ({error}). {advice}") from error
    if len(tokenizer) <= vlm.config.image_token_id:  # without files there is an empty one, and no error
        reason = f"{len(tokenizer)} tokens, and the image token has id {vlm.config.image_token_id}"
        raise ValueError(f"tokenizer: none could be loaded from {place} ({reason}). {advice}")
    return tokenizer


def _require_room(config: Any) -> None:
    rows = config.get_text_config().vocab_size
    if not 0 <= config.query_token_id < rows:
        raise ValueError(
            f"query_token_id: the query token's id is {config.query_token_id}, but the VLM's embedding has {rows} rows. "
            f"Enlarge it first: vlm.resize_token_embeddings({config.query_token_id + 1}, pad_to_multiple_of=64); "
            "vlm.save_pretrained(...)"
        )


def _generation_config(vlm: Part) -> GenerationConfig:
    if vlm.model is not None and vlm.model.generation_config is not None:
        return copy.deepcopy(vlm.model.generation_config)
    if vlm.folder is not None and (vlm.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(vlm.folder)
    return GenerationConfig.from_model_config(vlm.config)


def _parameter_counts(model: PreTrainedModel, has_tower: bool) -> dict[str, int]:
    counts = {"vlm": 0, "vision_tower": 0, "initialized": 0}
    for name, parameter in model.named_parameters():
        given = "vlm" if name.startswith(_VLM) else "vision_tower" if has_tower and name.startswith(_TOWER) else None
        counts[given or "initialized"] += parameter.numel()
    return counts


# ---------------------------------------------------------------------- tensors


def _sources(model: PreTrainedModel, vlm: Part, tower: Part | None, seed: int) -> dict[str, TensorSource]:
    """Where each tensor of the model comes from."""
    tied = dict(model.all_tied_weights_keys)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    inner: Any = model.vlm
    found = match(
        vlm,
        _below(wanted, _VLM),
        vlm_names,
        ignore=[
            *(inner._keys_to_ignore_on_load_unexpected or ()),
            *(inner.model._keys_to_ignore_on_load_unexpected or ()),
        ],
        tied={a.removeprefix(_VLM): b.removeprefix(_VLM) for a, b in tied.items()},
    )
    sources = {_VLM + name: source for name, source in found.items()}
    if tower is not None:
        expert: Any = model.expert
        if not hasattr(expert, "vision_tower"):
            raise ValueError("vision_tower: action_head='l1_regression' has no image encoder of its own; leave it out")
        _require_pixels_only(tower, expert.vision_tower)
        has_head = getattr(expert.vision_tower.config, "vision_use_head", True)
        ignore = [] if has_head else [r"^(vision_model\.)?head\."]
        if hasattr(tower.config, "vision_config"):
            ignore.append(r"^(?!vision_model\.)")  # the text tower and what compares both
        found = match(tower, _below(wanted, _TOWER), vision_tower_names, ignore)
    else:
        found = _fresh_tower(model.config, seed)
    sources.update({_TOWER + name: source for name, source in found.items()})
    fresh = FreshWeights(model, seed)
    return {
        name: sources[name] if name in sources else FreshTensor(fresh, name, tuple(tensor.shape))
        for name, tensor in wanted.items()
    }


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _require_pixels_only(part: Part, tower: nn.Module) -> None:
    parameters = inspect.signature(tower.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name != "pixel_values"]
    if needed:
        raise ValueError(
            f"vision_tower: {part.origin} ({type(tower).__name__}) needs {', '.join(needed)} besides pixel_values, which the "
            "action expert does not have; take a fixed-resolution encoder such as google/siglip-base-patch16-224"
        )


def _fresh_tower(config: Any, seed: int) -> dict[str, TensorSource]:
    with seeded(seed, _TOWER):
        tower = AutoModel.from_config(config.expert_vision_config, dtype=torch.float32)
    return {name: MemoryTensor(tensor) for name, tensor in tower.state_dict().items()}


# ---------------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `syvla.processing.assemble_processor`, which writes model and processor; this package knows no processor."""
    arguments = sys.argv[1:] if argv is None else argv
    return subprocess.call([sys.executable, "-m", "syvla.processing.assemble_processor", *arguments])


if __name__ == "__main__":
    sys.exit(main())
