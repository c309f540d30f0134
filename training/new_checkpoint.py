"""A checkpoint that fits a dataset, to start from (`syvla-new`): fine-tuning on own data is then two commands.

    syvla-new --size tiny --robot-from path/to/dataset --output outputs/base
    syvla-finetune --model_path outputs/base --robot_datasets path/to/dataset --multimodal_share 0 --output_dir outputs/mine

Dimensions and their names, cameras, rate and statistics are read from the dataset. `tiny` and `small` have random weights and
learn from nothing on a CPU: to try the whole way, not to get a capable robot. `3b` is put together from a pretrained VLM and
image encoder, as `syvla-assemble` does; its action expert starts fresh.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.command_line import CommandParser, error_text
from syvla.training.imitation.datasets import SOURCE_KEYS, load_robot_data
from syvla.training.run.arguments import ROBOT_KEYS, DataArguments, dataset_spec

VLM, VISION_TOWER = "Qwen/Qwen2.5-VL-3B-Instruct", "google/siglip-base-patch16-224"

CHUNK_SIZES = {"tiny": 8, "small": 16, "3b": 50}
"""Steps of an action chunk where no other number is asked for; the paper's 50 at full size."""

# 11.5 million parameters with 14-dimensional states and actions, four times the pixels of `tiny`. Ours.
_SMALL_TEXT = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
_SMALL_VISION = {"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256}
_SMALL_EXPERT = {
    "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "head_dim": 32, "ff_multiple_of": 32,
}  # fmt: skip


def new_checkpoint(
    size: str,
    dataset: str | Mapping[str, Any],
    output: str | Path,
    *,
    chunk_size: int | None = None,
    seed: int = 0,
    vlm: str | Path = VLM,
    vision_tower: str | Path = VISION_TOWER,
    config_overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write model and processor for the robot of a dataset.

    Args:
        size: "tiny", "small" or "3b".
        dataset: Path, Hub id or JSON object, as an entry of `robot_datasets`.
        output: Folder to create; must not exist or be empty.
        chunk_size: Steps of an action chunk; None: the size's own.
        seed: Seed of the weights that are drawn.
        vlm, vision_tower: Parts of "3b": folders or Hub ids.
        config_overrides: Further fields of [`SyVLAConfig`].

    Returns:
        What was made: folder, parameters, and the robot as it was read.

    Raises:
        ValueError: The dataset does not do, or a part is missing or does not fit.
        FileExistsError: `output` is not empty.
    """
    from syvla.modeling_syvla.checkpoint_parts import require_new

    if size not in CHUNK_SIZES:
        raise ValueError(f"size: expected one of {', '.join(CHUNK_SIZES)}, got {size!r}")
    require_new(output)
    spec = dataset_spec(dict(dataset) if isinstance(dataset, Mapping) else dataset, "robot-from", ROBOT_KEYS)
    spec = _with_robot(spec)
    cameras = spec["cameras"]
    fields = {**(config_overrides or {}), "views": list(cameras), "chunk_size": chunk_size or CHUNK_SIZES[size]}
    if size == "3b":
        report = _assembled(spec, output, vlm, vision_tower, fields, seed)
    else:
        report = _random(size, spec, output, fields, seed)
    return {"checkpoint": str(output), "size": size, **report}


def choose_views(keys: Sequence[str]) -> dict[str, str]:
    """A view for every camera of a dataset: the default ones by name, and for others views of their own names.

    Args:
        keys: Camera features, in the dataset's order.

    Returns:
        View to feature, the default views first. `infer_cameras` finds the same from these views alone, so later commands need
        no camera map.
    """
    from syvla.processing.transforms import DEFAULT_VIEWS, infer_cameras

    def named(others: Sequence[str]) -> dict[str, str]:
        return {_view_name(key): key for key in others}

    try:
        found = infer_cameras(keys, DEFAULT_VIEWS)
        cameras = {**found, **named([key for key in keys if key not in found.values()])}
        if set(cameras.values()) == set(keys) and infer_cameras(keys, list(cameras)) == cameras:
            return cameras
    except ValueError:
        pass  # no camera, or two, for one of the default views
    cameras = named(keys)
    if set(cameras.values()) != set(keys) or infer_cameras(keys, list(cameras)) != cameras:
        raise ValueError(
            f'cameras: no views can be named after {list(keys)}; name them: {{"path": ..., "cameras": {{"VIEW": "KEY"}}}}'
        )
    return cameras


def _view_name(key: str) -> str:
    return key.removeprefix("observation.").removeprefix("images.").removeprefix("image.").replace(".", "_").lower()


def _with_robot(spec: dict[str, Any]) -> dict[str, Any]:
    """The entry of the dataset with embodiment and cameras filled in from its metadata."""
    from syvla.processing.robot_data.streamed_dataset import open_metadata

    info = open_metadata(spec["path"], **{key: spec[key] for key in SOURCE_KEYS if key in spec}).info
    if not info.camera_keys:
        raise ValueError(f"{spec['path']}: the dataset has no camera feature; SyVLA needs at least one")
    robot = (info.robot_type or "").strip()
    name = robot if robot.replace("_", "").replace("-", "").isalnum() and robot != "unknown" else "my_robot"
    return {"embodiment": name, "cameras": choose_views(info.camera_keys), **spec}


def _register(spec: dict[str, Any], config: Any, processor: Any) -> dict[str, Any]:
    """Give processor and config the robot of the dataset; returns how it was read."""
    arguments = DataArguments(robot_datasets=[json.dumps(spec)], multimodal_share=0.0)
    model = SimpleNamespace(config=config, add_embodiment=config.add_embodiment)
    (dataset,) = load_robot_data(arguments, model, processor)
    entry = processor.embodiments[dataset.embodiment]
    return {
        "embodiment": dataset.embodiment,
        "state": entry.get("state_names") or f"{entry['state_dim']} dimensions without names",
        "action": entry.get("action_names") or f"{entry['action_dim']} dimensions without names",
        "control_hz": entry["control_hz"],
        "cameras": entry["cameras"],
        "chunk_seconds": round(config.chunk_size / entry["control_hz"], 3),
        "frames": len(dataset),
    }


def _random(size: str, spec: dict[str, Any], output: str | Path, fields: dict[str, Any], seed: int) -> dict[str, Any]:
    import torch

    from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
    from syvla.modeling_syvla.checkpoint_parts import new_checkpoint_folder
    from syvla.processing.tiny_processor import build_tiny_processor

    config = SyVLAConfig.tiny(**{**(_small_fields() if size == "small" else {}), "embodiments": {}, **fields})
    processor = build_tiny_processor(config)
    robot = _register(spec, config, processor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SyVLAModel(config)
    with new_checkpoint_folder(output, 4 * model.num_parameters()) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return {"parameters": model.num_parameters(), **robot}


def _small_fields() -> dict[str, Any]:
    from syvla.modeling_syvla import SyVLAConfig

    vlm = SyVLAConfig.tiny().vlm_config.to_dict()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vlm["text_config"].update(_SMALL_TEXT, num_key_value_heads=4, rope_parameters=rope)
    vlm["text_config"].pop("layer_types", None)
    vlm["vision_config"].update(_SMALL_VISION, fullatt_block_indexes=[1, 3])
    return {"vlm_config": vlm, "expert_config": _SMALL_EXPERT, "expert_image_size": 64, "num_query_tokens": 20}


def _assembled(
    spec: dict[str, Any],
    output: str | Path,
    vlm: str | Path,
    vision_tower: str | Path,
    fields: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    from syvla.modeling_syvla.assemble import assemble_checkpoint
    from syvla.processing.assemble_processor import assemble_processor
    from syvla.processing.robot_data.streamed_dataset import open_robot_dataset

    robot: dict[str, Any] = {}

    def processor(config: Any) -> Any:
        made = assemble_processor(vlm, vision_tower, config)
        robot.update(_register(spec, config, made))
        return made

    of_the_run = ("path", "weight", "normalization", "units", "delta_actions", "shuffle_files")
    options = {key: value for key, value in spec.items() if key not in of_the_run}
    dataset = open_robot_dataset(spec["path"], chunk_size=1, views=fields["views"], **options)
    dims = {dataset.embodiment: {"state_dim": dataset.state_dim, "action_dim": dataset.action_dim}}
    try:
        report = assemble_checkpoint(
            vlm, vision_tower, output, embodiments=dims, config_overrides=fields, seed=seed, processor=processor
        )
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"size 3b: no checkpoint could be made of vlm={str(vlm)!r} and vision_tower={str(vision_tower)!r}: {error}\n"
            "Download both (hf download ID --local-dir FOLDER) and pass their folders with --vlm and --vision-tower, or take "
            "--size tiny or small, which need no download"
        ) from error
    return {"assembly": report, **robot}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-new`. Returns the exit status; bad input is printed as one error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = CommandParser(
        prog="syvla-new",
        description="Make a checkpoint that fits the robot of a dataset, to fine-tune it.",
        example="syvla-new --size tiny --robot-from me/my_task --output outputs/base",
    )
    parser.add_argument("--size", required=True, choices=list(CHUNK_SIZES), help="tiny and small: random weights")
    parser.add_argument(
        "--robot-from", required=True, metavar="DATASET", help="path, Hub id or JSON object, as in robot_datasets"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument("--chunk-size", type=int, help=f"steps of an action chunk (default: by size, {CHUNK_SIZES})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights that are drawn (default: 0)")
    parser.add_argument("--vlm", help=f"VLM of size 3b, folder or Hub id (default: {VLM})")
    parser.add_argument("--vision-tower", help=f"image encoder of size 3b (default: {VISION_TOWER})")
    options = parser.parse_args(argv)
    try:
        if options.size != "3b" and (options.vlm or options.vision_tower):
            raise ValueError(f"--vlm and --vision-tower: have no effect with --size {options.size}; take --size 3b")
        if options.chunk_size is not None and options.chunk_size < 1:
            raise ValueError(f"--chunk-size: expected at least 1, got {options.chunk_size}")
        report = new_checkpoint(
            options.size,
            options.robot_from,
            options.output,
            chunk_size=options.chunk_size,
            seed=options.seed,
            vlm=options.vlm or VLM,
            vision_tower=options.vision_tower or VISION_TOWER,
        )
    except (ValueError, OSError) as error:
        print(error_text("syvla-new", error), file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
