"""A SyVLA checkpoint with its processor out of pretrained parts: `syvla-assemble --vlm ... --vision-tower ... --output ...`.

The model part is `syvla.modeling_syvla.assemble`; this adds the processor and the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from syvla.command_line import CommandParser, error_text
from syvla.modeling_syvla.assemble import assemble_checkpoint
from syvla.modeling_syvla.configuration_syvla import SyVLAConfig

from .processing_syvla import SyVLAProcessor


def assemble_processor(
    vlm: str | Path,
    vision_tower: str | Path | None,
    config: SyVLAConfig | str | Path,
    *,
    output: str | Path | None = None,
    vlm_revision: str | None = None,
    vision_tower_revision: str | None = None,
) -> SyVLAProcessor:
    """Processor of a model assembled from the same parts.

    Robots are left to `set_embodiment`, since their statistics come from data.

    Args:
        vlm: Qwen-VL checkpoint (folder or Hub id): tokenizer and image processor.
        vision_tower: Checkpoint of the expert's image encoder: its image processor, set to the config's image size. None:
            SigLIP's standard one.
        config: The model's config, or its checkpoint folder.
        output: Folder to save the processor into; None saves nothing.
        vlm_revision, vision_tower_revision: Branch, tag or commit on the Hub.

    Raises:
        ValueError: If a part has no tokenizer or image processor, or they do not fit the model.
    """
    fields: Any = SyVLAConfig.from_pretrained(config) if isinstance(config, (str, Path)) else config
    side = fields.expert_image_size
    processor = SyVLAProcessor(
        image_processor=_load(AutoImageProcessor, "vlm", vlm, vlm_revision),
        tokenizer=_load(AutoTokenizer, "vlm", vlm, vlm_revision),
        expert_image_processor=_expert_image_processor(vision_tower, vision_tower_revision, side),
        views=fields.views,
        num_query_tokens=fields.num_query_tokens,
        chunk_size=fields.chunk_size,
    )
    if problems := _disagreements(processor, fields):
        raise ValueError(f"processor: does not fit the model; {'; '.join(problems)}")
    if output is not None:
        processor.save_pretrained(output)
    return processor


def assemble(
    vlm: str | Path,
    vision_tower: str | Path | None,
    output: str | Path,
    *,
    vlm_revision: str | None = None,
    vision_tower_revision: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Model and processor in one checkpoint; `options` and result are those of `assemble_checkpoint`."""
    revisions: dict[str, Any] = {"vlm_revision": vlm_revision, "vision_tower_revision": vision_tower_revision}
    return assemble_checkpoint(
        vlm,
        vision_tower,
        output,
        processor=lambda config: assemble_processor(vlm, vision_tower, config, **revisions),
        **revisions,
        **options,
    )


def _load(auto_class: Any, name: str, source: str | Path, revision: str | None) -> Any:
    try:
        return auto_class.from_pretrained(source, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError, KeyError) as error:
        kind = "tokenizer" if auto_class is AutoTokenizer else "image processor (preprocessor_config.json)"
        raise ValueError(f"{name}: {source}: no {kind} could be loaded: {error}") from error


def _expert_image_processor(vision_tower: str | Path | None, revision: str | None, side: int) -> Any:
    if vision_tower is None:
        from transformers import SiglipImageProcessorPil

        return SiglipImageProcessorPil(size={"height": side, "width": side})
    processor = _load(AutoImageProcessor, "vision_tower", vision_tower, revision)
    size = dict(processor.size)
    if set(size) == {"height", "width"}:
        processor.size = {"height": side, "width": side}
    elif set(size) == {"shortest_edge"} and getattr(processor, "do_center_crop", False):
        processor.size, processor.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    else:
        raise ValueError(
            f"vision_tower: {vision_tower}: expected an image processor that makes square images (size height and width, or "
            f"shortest_edge with a center crop), got size {size}"
        )
    return processor


def _disagreements(processor: SyVLAProcessor, config: Any) -> list[str]:
    problems = processor.disagreements(config)
    if processor.image_token_id != config.image_token_id:
        problems.append(
            f"image token: the tokenizer has id {processor.image_token_id}, the model {config.image_token_id}"
        )
    vision, images = config.vlm_config.vision_config, processor.image_processor
    for theirs, mine in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("spatial_merge_size", "merge_size"),
    ):
        if getattr(images, mine, None) != getattr(vision, theirs):
            problems.append(
                f"{mine}: the image processor has {getattr(images, mine, None)}, the model {getattr(vision, theirs)}"
            )
    return problems


# ---------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="syvla-assemble",
        description="Make a SyVLA checkpoint (model and processor) out of a Qwen-VL and a SigLIP checkpoint.",
        example="syvla-assemble --vlm Qwen/Qwen2.5-VL-3B-Instruct --vision-tower google/siglip-base-patch16-224 "
        "--output outputs/assembled",
    )
    parser.add_argument("--vlm", required=True, help="Qwen-VL checkpoint: folder or Hub id")
    parser.add_argument("--vision-tower", required=True, help="SigLIP checkpoint: folder or Hub id")
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument(
        "--embodiment",
        dest="embodiments",
        action="append",
        default=[],
        type=embodiment,
        metavar="NAME:STATE_DIM:ACTION_DIM",
        help="a robot, such as cobot_magic:14:14; may be repeated, and robots can be added later",
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], type=override, metavar="FIELD=JSON",
                        help="a field of SyVLAConfig, such as chunk_size=32; may be repeated")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights that neither part gives")
    parser.add_argument("--dtype", default="auto", help="auto keeps what the parts have; or float32, bfloat16, float16")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weight file")
    parser.add_argument("--vlm-revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--vision-tower-revision", help="branch, tag or commit on the Hub")
    return parser


def embodiment(text: str) -> tuple[str, dict[str, int]]:
    """`name:state_dim:action_dim` as (name, dimensions)."""
    parts = text.split(":")
    if len(parts) != 3 or not parts[0] or not all(part.isdigit() for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"expected NAME:STATE_DIM:ACTION_DIM such as cobot_magic:14:14, got {text!r}")
    return parts[0], {"state_dim": int(parts[1]), "action_dim": int(parts[2])}


def override(text: str) -> tuple[str, Any]:
    """`field=JSON` as (field, value)."""
    field, separator, value = text.partition("=")
    try:
        if field and separator:
            return field, json.loads(value)
    except json.JSONDecodeError:
        pass
    raise argparse.ArgumentTypeError(f"expected FIELD=JSON such as chunk_size=32, got {text!r}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-assemble`; returns the exit status. The report is printed and in `OUTPUT/assembly.json`."""
    options = build_parser().parse_args(argv)
    try:
        report = assemble(
            options.vlm,
            options.vision_tower,
            options.output,
            embodiments=dict(options.embodiments) or None,
            config_overrides=dict(options.overrides),
            seed=options.seed,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            vlm_revision=options.vlm_revision,
            vision_tower_revision=options.vision_tower_revision,
        )
    except (OSError, ValueError) as error:
        print(error_text("syvla-assemble", error), file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
