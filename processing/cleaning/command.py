"""Finds unusable demonstrations in a LeRobot dataset (`syvla-clean`); never changes the dataset.

Writes into the output folder `filter.json`, which `RobotDataset(filter_file=...)` and the key `filter_file` of a recipe
apply, `report.json` and `report.md`.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_json
from syvla.processing.lfs_pointers import require_contents
from syvla.processing.robot_data.frame_filter import FrameFilter, dataset_digest
from syvla.processing.robot_data.lerobot_format import DatasetError
from syvla.processing.robot_data.metadata import DatasetMetadata, read_metadata
from syvla.processing.robot_data.robot_dataset import RobotDataset
from syvla.processing.robot_data.source import locate_dataset

from .filters import FILTERS, CleaningSettings, Episode, Finding, Scales, inspect_episode
from .report import DEFAULT_CHUNK_SIZE, CleaningReport, removals

logger = logging.getLogger(__name__)


def clean_dataset(
    root_or_repo_id: str | Path,
    output: str | Path,
    settings: CleaningSettings | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    **reader: Any,
) -> CleaningReport:
    """Applies all filters to a dataset and writes filter file and reports.

    Args:
        root_or_repo_id: See `RobotDataset`.
        output: Folder of `filter.json`, `report.json` and `report.md`; not inside the dataset.
        settings: Thresholds; None takes the defaults.
        workers: Processes that inspect episodes; the result is the same for any number.
        progress: Whether to show a progress bar.
        chunk_size: Actions of the model's chunks; the report says how many full ones each filter costs.
        reader: Further arguments of `RobotDataset`: `cameras`, `state_key`, `action_key`, `tolerance_s`, `revision`.

    Returns:
        The report.

    Raises:
        FileNotFoundError: No dataset there.
        DatasetError: The arguments do not fit the dataset, or none of its episodes can be read.
        ValueError: `output` lies inside the dataset.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, got {chunk_size}")
    chosen = settings or CleaningSettings()
    root = locate_dataset(root_or_repo_id, revision=reader.pop("revision", None))
    folder = Path(output)
    if folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"output: {output} lies inside the dataset, which stays as it is; name another folder")
    metadata = read_metadata(root)
    readable, findings = _open(root, metadata, reader)
    inspector = _Inspector(root, readable, reader, chosen)
    with tqdm(total=len(readable), desc="Inspecting episodes", unit="episode", disable=not progress) as bar:
        for found in _inspections(inspector, workers):
            findings += found
            bar.update()
    findings.sort(key=lambda finding: (finding.episode, FILTERS.index(finding.filter), finding.start))
    result = filter_of(findings, metadata)
    name = root.name if Path(root_or_repo_id).is_dir() else str(root_or_repo_id)
    report = CleaningReport(name, metadata.lengths.tolist(), metadata.info.fps, chosen, findings, result, chunk_size)
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / "filter.json")
    write_json(folder / "report.json", report.to_dict())
    (folder / "report.md").write_text(report.table(), encoding="utf-8")
    return report


def filter_of(findings: Sequence[Finding], metadata: DatasetMetadata) -> FrameFilter:
    """The filter that findings ask for; an episode of which nothing would be left is removed whole."""
    return FrameFilter(dataset_digest(metadata), *removals(findings, metadata.lengths.tolist()))


def _open(root: Path, metadata: DatasetMetadata, reader: Mapping[str, Any]) -> tuple[list[int], list[Finding]]:
    """Episodes whose parquet files can be read, and a finding for each of the others."""
    everything = list(range(len(metadata.lengths)))
    try:
        _dataset(root, everything, reader)
        return everything, []
    except DatasetError as error:
        require_contents(root / metadata.data_path(episode) for episode in everything)
        readable, findings = [], []
        for episode in tqdm(everything, desc="Looking for unreadable episodes", leave=False):
            try:
                _dataset(root, [episode], reader)
                readable.append(episode)
            except DatasetError as single:
                findings.append(Finding("unreadable", episode, 0, None, "; ".join(single.problems)))
        if not readable:
            raise error
        return readable, findings


def _dataset(root: Path, episodes: Sequence[int], reader: Mapping[str, Any]) -> RobotDataset:
    return RobotDataset(root, embodiment="any", chunk_size=1, episodes=episodes, thought_source=None, **reader)


class _Inspector:
    """Inspects episodes by their position among the readable ones."""

    def __init__(self, root: Path, episodes: list[int], reader: Mapping[str, Any], settings: CleaningSettings) -> None:
        self._dataset = _dataset(root, episodes, reader)
        self._settings = settings
        dataset = self._dataset
        self._scales = Scales.of(
            dataset.states, dataset.actions, dataset.episode_starts, dataset.fps, dataset.action_names, settings
        )

    def __len__(self) -> int:
        return self._dataset.num_episodes

    def __call__(self, position: int) -> list[Finding]:
        dataset = self._dataset
        start = int(dataset.episode_starts[position])
        frames = slice(start, start + int(dataset.episode_lengths[position]))
        episode = Episode(
            dataset.episodes[position],
            dataset.fps,
            dataset.states[frames],
            dataset.actions[frames],
            dataset.timestamps[frames],
            lambda view, frame: dataset.read_image(view, start + frame),
            list(dataset.cameras),
            dataset.action_names,
        )
        with np.errstate(invalid="ignore"):  # NaN is what one of the filters looks for
            return inspect_episode(episode, self._scales, self._settings)


_inspector: _Inspector  # of a worker process, set when it starts


def _start_worker(inspector: _Inspector) -> None:
    global _inspector
    _inspector = inspector


def _inspect_in_worker(position: int) -> list[Finding]:
    return _inspector(position)


def _inspections(inspector: _Inspector, workers: int) -> Iterator[list[Finding]]:
    if workers == 1:
        yield from map(inspector, range(len(inspector)))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(inspector,)) as pool:
        yield from pool.map(_inspect_in_worker, range(len(inspector)), chunksize=4)


def read_settings(path: Path | None, options: Mapping[str, Any]) -> CleaningSettings:
    """Settings from a YAML file, with what the command line gives on top.

    Raises:
        ValueError: If a key or value is wrong.
    """
    import yaml

    try:
        values = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path}: expected a mapping of settings, got {type(values).__name__}")
    return replace(CleaningSettings.from_mapping(values), **options)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-clean`."""
    parser = CommandParser(
        prog="syvla-clean",
        description="Find unusable demonstrations in a LeRobot dataset and write a filter file that training applies. "
        "The dataset stays as it is.",
        example="syvla-clean me/my_task --output outputs/cleaning",
    )
    parser.add_argument("dataset", help="folder or Hub id of the dataset")
    parser.add_argument("--output", type=Path, required=True, default=argparse.SUPPRESS, help="folder of the results")
    parser.add_argument("--config", type=Path, help="YAML file with settings; options of the command line win")
    parser.add_argument(
        "--skip", action="append", choices=FILTERS[1:], default=argparse.SUPPRESS, help="filter to skip; repeat"
    )
    for item in fields(CleaningSettings):
        if isinstance(item.default, float):
            name = "--" + item.name.replace("_", "-")
            parser.add_argument(name, type=float, default=argparse.SUPPRESS, help=f"(default: {item.default:g})")
    parser.add_argument(
        "--jump-ignore", nargs="*", default=argparse.SUPPRESS, help="dimensions not looked at for jumps (default: none)"
    )
    parser.add_argument(
        "--chunk-size",
        type=int,
        default=DEFAULT_CHUNK_SIZE,
        help="actions of the model's chunks, to say what a filter costs",
    )
    parser.add_argument("--state-key", default="observation.state", help="feature that is the robot's state")
    parser.add_argument("--action-key", default="action", help="feature that is the action")
    parser.add_argument("--camera", action="append", default=[], metavar="VIEW=KEY", help="as cameras in a recipe")
    parser.add_argument("--tolerance-s", type=float, default=1e-4, help="between a timestamp and its video frame")
    parser.add_argument("--revision", help="Hub revision")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    thresholds = [
        f"--{item.name.replace('_', '-')}" for item in fields(CleaningSettings) if isinstance(item.default, float)
    ]
    parser.arrange(
        {
            "what is read": ["--state-key", "--action-key", "--camera", "--tolerance-s", "--revision"],
            "filters": ["--skip", "--jump-ignore", *thresholds],
        }
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-clean`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    given = {item.name: getattr(arguments, item.name) for item in fields(CleaningSettings) if item.name in arguments}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        cameras = dict(entry.split("=", 1) for entry in arguments.camera if "=" in entry)
        if len(cameras) != len(arguments.camera):
            raise ValueError(f"camera: expected VIEW=KEY, got {arguments.camera}")
        report = clean_dataset(
            arguments.dataset,
            arguments.output,
            read_settings(arguments.config, given),
            workers=arguments.workers,
            chunk_size=arguments.chunk_size,
            progress=not arguments.quiet,
            revision=arguments.revision,
            cameras=cameras or None,
            state_key=arguments.state_key,
            action_key=arguments.action_key,
            tolerance_s=arguments.tolerance_s,
        )
    except (ValueError, OSError) as error:
        print(error_text("syvla-clean", error), file=sys.stderr)
        return 1
    print(report.table())
    print(f"written to {arguments.output}; use it with filter_file: {arguments.output / 'filter.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
