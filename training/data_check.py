"""Checks the robot data of a recipe from its metadata alone (`syvla-check-data`): nothing but `meta/` is downloaded.

Every dataset is opened as training opens it, without its frames: version, cameras, state and action, rate, names and
dimensions within one embodiment, weights, units, license. All problems are listed at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_json
from syvla.processing.robot_data.streamed_dataset import open_metadata
from syvla.processing.robot_data.streamed_metadata import is_url
from syvla.processing.robot_data.vector_parts import DEFAULT_KEYS, part_names, read_modality, vector_parts
from syvla.processing.transforms import DEFAULT_VIEWS, infer_cameras
from syvla.training.run.recipe import shipped_path

logger = logging.getLogger(__name__)


@dataclass
class DatasetCheck:
    """What the metadata of one dataset says, and what is wrong with its entry of the recipe."""

    path: str
    embodiment: str | None = None
    version: str | None = None
    episodes: int = 0
    frames: int = 0
    hours: float = 0.0
    fps: float = 0.0
    dimensions: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str] | None] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    weight: float | None = None
    license: str | None = None
    gigabytes: float | None = None
    problems: list[str] = field(default_factory=list)


def check_recipe(recipe: Path, views: Sequence[str] = DEFAULT_VIEWS) -> list[DatasetCheck]:
    """Checks every entry of `robot_datasets`.

    Args:
        recipe: YAML file.
        views: The model's views, where the recipe names none.

    Raises:
        ValueError: It is no recipe, or names no robot data.
        OSError: It cannot be read.
    """
    import yaml

    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{recipe}: no valid YAML ({error})") from error
    specs = values.get("robot_datasets") if isinstance(values, dict) else None
    if not isinstance(specs, list) or not all(isinstance(spec, dict) and "path" in spec for spec in specs):
        raise ValueError(f"{recipe}: robot_datasets: expected a list of entries with path")
    views = values.get("views") or views
    checks = [_check(spec, views) for spec in specs]
    _compare(checks)
    return checks


def _check(spec: dict[str, Any], views: Sequence[str]) -> DatasetCheck:
    check = DatasetCheck(
        str(spec["path"]), spec.get("embodiment"), weight=spec.get("weight"), license=spec.get("license")
    )
    if not check.embodiment:
        check.problems.append("names no embodiment; add a name for this robot")
    try:
        given = {key: spec[key] for key in ("revision", "streaming", "cache_gb", "cache_dir") if key in spec}
        metadata = open_metadata(spec["path"], **given)
    except (ValueError, OSError) as error:
        check.problems.append(str(error))
        return check
    info = metadata.info
    check.version, check.fps = info.codebase_version, info.fps
    check.episodes, check.frames = info.total_episodes, info.total_frames
    check.hours = round(info.total_frames / info.fps / 3600, 1)
    _check_vectors(check, spec, metadata.root, info)
    _check_cameras(check, spec, info, views)
    if not Path(spec["path"]).is_dir() and not is_url(spec["path"]):
        _check_hub(check, spec)
    return check


def _check_vectors(check: DatasetCheck, spec: dict[str, Any], root: Path, info: Any) -> None:
    try:
        modality = read_modality(root)
    except ValueError as error:
        check.problems.append(str(error))
        return
    for kind in ("state", "action"):
        try:
            parts = vector_parts(kind, spec.get(f"{kind}_key", DEFAULT_KEYS[kind]), info.features, modality)
        except ValueError as error:
            check.problems.append(str(error))
            continue
        check.dimensions[kind] = sum(part.stop - part.start for part in parts)
        check.names[kind] = part_names(parts, info.features)
        units = (spec.get("units") or {}).get(kind)
        if units is not None and len(units) != check.dimensions[kind]:
            check.problems.append(f"units: {len(units)} for the {check.dimensions[kind]} dimensions of the {kind}")


def _check_cameras(check: DatasetCheck, spec: dict[str, Any], info: Any, views: Sequence[str]) -> None:
    given = spec.get("cameras")
    try:
        check.cameras = dict(given) if given is not None else infer_cameras(info.camera_keys, views)
    except (TypeError, ValueError) as error:
        check.problems.append(f"cameras: {error}")
        return
    for view, key in check.cameras.items():
        if view not in views:
            check.problems.append(f"cameras: {view!r} is no view of the model, which has {list(views)}")
        if key not in info.camera_keys:
            check.problems.append(f"cameras: {view}: {key!r} is no camera; the dataset has {info.camera_keys}")


def _check_hub(check: DatasetCheck, spec: dict[str, Any]) -> None:
    """License of the card, and the size of the download."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        found = HfApi().dataset_info(str(spec["path"]), revision=spec.get("revision"), files_metadata=True)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        logger.warning("%s: license and size were not checked (%s)", spec["path"], type(error).__name__)
        return
    card = getattr(found.card_data, "license", None) if found.card_data is not None else None
    if check.license is None:
        check.license = card
    elif card is not None and str(card).lower() != check.license.lower():
        check.problems.append(f"license: the recipe says {check.license!r}, the Hub's card {card!r}; read both")
    sizes = [file.size or 0 for file in found.siblings or []]
    check.gigabytes = round(sum(sizes) / 1e9, 1) if sizes else None


def _compare(checks: Sequence[DatasetCheck]) -> None:
    """What holds between entries: weights for all or none, one robot's dimensions and names."""
    if any(check.weight is not None for check in checks):
        for check in checks:
            if not isinstance(check.weight, int | float) or isinstance(check.weight, bool) or not check.weight > 0:
                check.problems.append(f"weight: expected a number above 0, as others have one, got {check.weight!r}")
    first: dict[str, DatasetCheck] = {}
    for check in checks:
        other = first.setdefault(check.embodiment or "", check)
        for kind in ("state", "action"):
            for what, mine, theirs in (
                ("dimensions", check.dimensions.get(kind), other.dimensions.get(kind)),
                ("names", check.names.get(kind), other.names.get(kind)),
            ):
                if check.embodiment and None not in (mine, theirs) and mine != theirs:
                    check.problems.append(
                        f"embodiment {check.embodiment!r}: {kind} {what} {mine}, but {other.path} has {theirs}; name another"
                    )


def table(checks: Sequence[DatasetCheck]) -> str:
    """The checks as a table, with the share of the samples that each dataset gets."""
    shares = [float(check.weight if check.weight is not None else check.frames) for check in checks]
    rows = [["dataset", "version", "episodes", "hours", "fps", "state", "action", "cameras", "share", "license", "GB"]]
    for check, share in zip(checks, shares, strict=True):
        rows.append(
            [check.path, check.version or "?", str(check.episodes), f"{check.hours:g}", f"{check.fps:g}",
             *(str(check.dimensions.get(kind, "?")) for kind in ("state", "action")),
             " ".join(check.cameras) or "?", f"{share / max(sum(shares), 1e-9):.1%}", check.license or "not stated",
             "?" if check.gigabytes is None else f"{check.gigabytes:g}"]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-check-data`; returns the exit status."""
    parser = CommandParser(
        prog="syvla-check-data",
        description="Check the robot data of a recipe from its metadata alone, before anything large is downloaded.",
        example="syvla-check-data --config my_recipe.yaml",
    )
    parser.add_argument("--config", required=True, default=argparse.SUPPRESS, help="YAML recipe")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args(argv)
    try:
        checks = check_recipe(shipped_path(arguments.config))
    except (ValueError, OSError) as error:
        print(error_text("syvla-check-data", error), file=sys.stderr)
        return 1
    if arguments.output is not None:
        write_json(arguments.output, [asdict(check) for check in checks])
    print(table(checks))
    problems = [f"- {check.path}: {problem}" for check in checks for problem in check.problems]
    if problems:
        print("\n".join(["", *problems]), file=sys.stderr)
    print(f"\n{len(checks)} datasets, {sum(check.hours for check in checks):,.0f} hours, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
