"""The VLM inside a SyVLA checkpoint as a plain checkpoint of its family, for vLLM, lmms-eval and `transformers` alone.

transformers 4.57 and 5 read it.

`python -m syvla.modeling_syvla.export_vlm CHECKPOINT OUTPUT`
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from .checkpoint_parts import (
    Part,
    find_folder,
    match,
    new_checkpoint_folder,
    parse_dtype,
    published_layout,
    require_new,
    require_supported_vlm,
    save_without_weights,
    vlm_names,
)
from .configuration_syvla import SyVLAConfig
from .tensor_files import nbytes, read_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def export_vlm(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
) -> dict[str, Any]:
    """Write the VLM of a SyVLA checkpoint with the file layout and tensor names of its family's published checkpoints.

    Tokenizer, chat template and image processor come along when the checkpoint has them. The tokenizer keeps the query
    token, an id that the embedding has room for and that plain use never meets. Memory stays below one shard.

    Args:
        checkpoint: SyVLA checkpoint: folder or Hub id.
        output: Folder to create; must not exist or be empty.
        dtype: Convert all floating-point tensors; None keeps each one's own.
        max_shard_size: Largest file, in bytes or like "5GB".
        revision: Branch, tag or commit on the Hub.

    Returns:
        Report: family, number of tensors, bytes, files.

    Raises:
        ValueError: If it is no SyVLA checkpoint, or tensors of the VLM are missing, unknown or of another shape.
        FileExistsError: If `output` is not empty.
    """
    require_new(output)
    target_dtype = parse_dtype(dtype)
    folder, _ = find_folder("checkpoint", checkpoint, revision)
    config = _syvla_config(folder)
    tensors = {k: v for k, v in read_checkpoint(folder).items() if k.startswith("vlm.")}
    part = Part("checkpoint", folder.name, None, config.vlm_config, tensors, folder)
    require_supported_vlm(part)
    with torch.device("meta"):
        vlm = AutoModelForImageTextToText.from_config(config.vlm_config)
    tied = dict(vlm.all_tied_weights_keys)
    wanted = {name: tensor for name, tensor in vlm.state_dict().items() if name not in tied}
    found = match(part, wanted, lambda key: [f"vlm.{name}" for name in vlm_names(key)], tied=tied)
    if (folder / "generation_config.json").is_file():
        vlm.generation_config = GenerationConfig.from_pretrained(folder)
    family = config.vlm_config.model_type
    renamed = {published_layout(family, name): source for name, source in found.items()}
    size = sum(nbytes(source, target_dtype) for source in renamed.values())
    with new_checkpoint_folder(output, size) as staging:
        save_without_weights(vlm, staging, target_dtype or part.dtype)
        _name_as_published(staging / "config.json", config.vlm_config)
        write_checkpoint(staging, renamed, max_shard_size, target_dtype)
        _copy_processor(folder, staging, _processor_class(family))
        files = sorted(path.name for path in staging.iterdir())
    report = {"family": family, "tensors": len(renamed), "bytes": size, "files": files}
    logger.info("exported %s: %s", output, report)
    return report


def _syvla_config(folder: Path) -> SyVLAConfig:
    path = folder / "config.json"
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None
    if model_type != SyVLAConfig.model_type:
        raise ValueError(
            f"checkpoint: {folder}: expected model_type 'syvla' in config.json, got {model_type!r}; only SyVLA checkpoints "
            "hold a VLM to export"
        )
    return SyVLAConfig.from_pretrained(folder)


def _name_as_published(path: Path, vlm_config: Any) -> None:
    """Give the language model's entries the names of the published checkpoints as well.

    transformers 4.57 and 5, vLLM and SGLang all read those; `rope_parameters`, and a `tie_word_embeddings` outside of
    `text_config`, are read by transformers 5 alone. Without them 4.57 fails in its first layer, or has a head of its own.
    """
    config = _read_json(path)
    text = config.get("text_config", config)
    rope = dict(text.get("rope_parameters") or {})
    if "mrope_section" in rope:
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = {**rope, "type": "mrope"}
    text.setdefault("tie_word_embeddings", bool(config.get("tie_word_embeddings", False)))
    # SGLang reads the language model's own, and takes float16 where it finds none; the second is the name before 4.56.
    text["dtype"] = config["torch_dtype"] = text["torch_dtype"] = config["dtype"]
    # vLLM has every part's rope parameters checked by its transformers, of which not all know those of image encoders.
    vision = config.get("vision_config", {})
    if vision.get("rope_parameters") == getattr(type(vlm_config.vision_config)(), "rope_parameters", None):
        vision.pop("rope_parameters", None)
    _write_json(path, config)


def _processor_class(family: str) -> str:
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return PROCESSOR_MAPPING_NAMES[family]


def _copy_processor(source: Path, target: Path, processor_class: str) -> None:
    """Tokenizer and image processor in the files that transformers 4.57 and 5 read."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    tokenizer_config = target / "tokenizer_config.json"
    if tokenizer_config.is_file():
        _write_json(tokenizer_config, _as_plain(_read_json(tokenizer_config), processor_class))
    if (source / "processor_config.json").is_file():
        image_processor = _read_json(source / "processor_config.json").get("image_processor")
    elif (source / "preprocessor_config.json").is_file():
        image_processor = _read_json(source / "preprocessor_config.json")
    else:
        return
    if image_processor:
        image_processor = _as_plain(image_processor, processor_class)
        # The class with this suffix is a backend of the same processor, which older versions do not know by name.
        kind = str(image_processor.get("image_processor_type", "")).removesuffix("Pil").removesuffix("Fast")
        _write_json(
            target / "preprocessor_config.json",
            {**image_processor, **_published_pixels(image_processor), "image_processor_type": kind},
        )


def _published_pixels(image_processor: dict[str, Any]) -> dict[str, int]:
    """`size` under its published names, which the fast processor of transformers 4.57 does not find itself; vLLM reads them."""
    size = image_processor.get("size") or {}
    names = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    return {name: size[key] for name, key in names.items() if key in size}


def _as_plain(entries: dict[str, Any], processor_class: str) -> dict[str, Any]:
    return {**{k: v for k, v in entries.items() if k != "auto_map"}, "processor_class": processor_class}


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status and prints the report as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.modeling_syvla.export_vlm",
        description="Write the VLM of a SyVLA checkpoint as a plain checkpoint of its own family.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", help="SyVLA checkpoint: folder or Hub id")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype", default="auto", help="auto keeps what the checkpoint has; or float32, bfloat16, float16"
    )
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    options = parser.parse_args(argv)
    try:
        report = export_vlm(
            options.checkpoint,
            options.output,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            revision=options.revision,
        )
    except (OSError, ValueError) as error:
        print(f"export_vlm: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
