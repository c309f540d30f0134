"""A contact sheet of what the model sees of a dataset under augmentation, next to what was recorded.

    python -m syvla.training.show_augmentation path/to/dataset --augmentation default --output sheet.png

Every row is one view of one sample: the recorded image, then one image for each pass over the dataset. A missing view is an
empty place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

import numpy as np
from PIL import Image, ImageDraw

from syvla.command_line import error_text
from syvla.processing.augmentation import (
    STRENGTHS,
    Augmentation,
    AugmentationSettings,
    augmentation_settings,
    describe_augmentation,
)
from syvla.processing.transforms import DEFAULT_VIEWS
from syvla.training.run.arguments import ROBOT_KEYS, dataset_spec, json_mapping

MARGIN, HEADER = 4, 16  # pixels


def contact_sheet(
    dataset: Any,
    settings: AugmentationSettings,
    *,
    samples: int = 3,
    passes: int = 5,
    seed: int = 0,
    width: int = 192,
) -> Image.Image:
    """Draws the sheet.

    Args:
        dataset: A `RobotDataset`.
        settings: What is changed.
        samples: Samples, evenly spread over the dataset.
        passes: Changes of each, those that the first passes of a run with one dataset would show.
        seed: Seed of the run.
        width: Of one image, in pixels.
    """
    statistics = {"statistics": dataset.statistics(), "normalization": {"state": "mean_std"}}
    augmentation = Augmentation(settings, {dataset.embodiment: statistics}, seed)
    rows = []
    for index in np.linspace(0, len(dataset) - 1, samples).round().astype(int).tolist():
        item = dataset[index]
        changed = [augmentation(item, (0, index, number)) for number in range(passes)]
        for view, image in item["images"].items():
            label = f"{view}, episode {item['episode_index']}, frame {item['frame_index']}"
            rows.append((label, [image, *(other["images"].get(view) for other in changed)]))
    heights = [max(1, round(width * images[0].shape[0] / images[0].shape[1])) for _, images in rows]
    size = ((width + MARGIN) * (passes + 1) + MARGIN, sum(heights) + (HEADER + MARGIN) * len(rows))
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (label, images), height in zip(rows, heights, strict=True):
        draw.text((MARGIN, top + 2), f"{label}: recorded, then passes 0 to {passes - 1}", fill="black")
        for column, image in enumerate(images):
            corner = (MARGIN + column * (width + MARGIN), top + HEADER)
            if image is None:
                draw.rectangle([*corner, corner[0] + width - 1, corner[1] + height - 1], outline="gray")
            else:
                sheet.paste(Image.fromarray(image).resize((width, height)), corner)
        top += HEADER + height + MARGIN
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m syvla.training.show_augmentation`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.show_augmentation",
        description="Write a contact sheet of what the model sees of a dataset under augmentation.",
    )
    parser.add_argument("dataset", help="path, Hub id or JSON object, as an entry of robot_datasets")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG", help="file to write")
    parser.add_argument("--augmentation", choices=[s for s in STRENGTHS if s != "none"], default="default")
    parser.add_argument("--augmentation_details", metavar="JSON", help="fields that differ from the strength's")
    parser.add_argument("--views", nargs="+", default=list(DEFAULT_VIEWS), help="views of the model")
    parser.add_argument("--samples", type=int, default=3, help="samples of the dataset (default: 3)")
    parser.add_argument("--passes", type=int, default=5, help="changes of each sample (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    options = parser.parse_args(argv)
    try:
        settings = augmentation_settings(
            options.augmentation, json_mapping("augmentation_details", options.augmentation_details)
        )
        assert settings is not None  # "none" is no choice here
        if min(options.samples, options.passes) < 1:
            raise ValueError("--samples and --passes: expected at least 1 each")
        dataset = _open(dataset_spec(options.dataset, "dataset", ROBOT_KEYS), options.views)
        sheet = contact_sheet(dataset, settings, samples=options.samples, passes=options.passes, seed=options.seed)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(options.output)
    except (ValueError, OSError) as error:
        print(error_text("error", error), file=sys.stderr)
        return 1
    print(f"{options.output}: {describe_augmentation(settings)}")
    return 0


def _open(spec: dict[str, Any], views: Sequence[str]) -> Any:
    from syvla.processing.robot_data.streamed_dataset import open_robot_dataset

    of_the_run = ("path", "weight", "normalization", "units", "delta_actions", "shuffle_files")
    options = {key: value for key, value in spec.items() if key not in of_the_run}
    return open_robot_dataset(spec["path"], chunk_size=1, views=views, **{"embodiment": "robot", **options})


if __name__ == "__main__":
    sys.exit(main())
