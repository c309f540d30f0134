"""Converts a whole source: episodes in their order, in parallel, so that a killed run goes on where it stopped.

The dataset's writer makes every saved episode safe. `meta/conversion.jsonl` says which source episode each one is: a line is
on disk before its episode is saved, and lines beyond the number of saved episodes stand for nothing.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import secrets
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from syvla.durable_files import append_json_lines, read_json_lines, write_json, write_text
from syvla.processing.recording.robot_dataset_writer import RobotDatasetWriter
from syvla.processing.robot_data.lerobot_format import INFO_PATH, read_info
from syvla.processing.robot_data.video import default_codec

from .episode import Converted, EpisodeConverter
from .mapping import ConversionMapping, MappingError
from .report import ConversionReport
from .source import EpisodeReference, Source, SourceError

logger = logging.getLogger(__name__)

MAPPING_PATH = "meta/conversion_mapping.json"
JOURNAL_PATH = "meta/conversion.jsonl"
REPORT_PATHS = ("meta/conversion_report.json", "meta/conversion_report.md")


def convert(
    source: Source,
    output: str | Path,
    mapping: ConversionMapping,
    *,
    workers: int = 1,
    limit: int | None = None,
    video_codec: str | None = None,
    progress: bool = True,
) -> ConversionReport:
    """Converts every episode of a source that can be converted; goes on with a conversion that was interrupted.

    Args:
        source: See `open_source`.
        output: Folder of the LeRobot v3.0 dataset.
        mapping: Without open questions.
        workers: Processes that read and encode; the dataset is the same for any number.
        limit: Convert the first so many episodes only.
        video_codec: See `RobotDatasetWriter`.
        progress: Whether to show a progress bar.

    Returns:
        The report, also written to `meta/conversion_report.json` and `.md`.

    Raises:
        MappingError: The mapping has open questions, or does not fit the source.
        SourceError: The source holds no episode that can be converted.
        ValueError: `output` holds a conversion with another mapping or source.
        OSError: The result cannot be written.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if questions := mapping.open_questions():
        raise MappingError("mapping: " + "; ".join(questions))
    if mapping.format != source.format:
        raise MappingError(f"mapping: format is {mapping.format!r}, the source is {source.format!r}")
    started, root = time.monotonic(), Path(output)
    references = source.episodes()[:limit]
    if len({reference.name for reference in references}) < len(references):
        raise SourceError(f"{source.root}: two episodes have one name; give every folder and file its own")
    done = _resume(root, source, mapping)
    report = ConversionReport(source.root.name, mapping, list(done), resumed=len(done))
    finished = {entry["source"] for entry in done}
    waiting = [reference for reference in references if reference.name not in finished]
    features = _features(root, source, mapping, waiting or references)
    codec = (video_codec or default_codec()) if mapping.storage == "video" else None
    skipped: dict[str, None] = {}
    with RobotDatasetWriter(
        root, fps=mapping.fps or 0, features=features, robot_type=mapping.robot_type, use_videos=None, thoughts=False,
        video_codec=codec,
    ) as writer:  # fmt: skip
        write_json(root / MAPPING_PATH, {"source": source.root.name, "mapping": mapping.to_dict()})
        converter = EpisodeConverter(source, mapping, writer.features, writer.staging, codec)
        with tqdm(total=len(waiting), desc="Converting", unit="episode", disable=not progress) as bar:
            for reference, result in _results(converter, waiting, workers):
                if isinstance(result, SourceError):
                    report.dropped.append({"source": reference.name, "reason": str(result)})
                else:
                    report.converted.append(_save(writer, reference, result))
                    skipped |= dict.fromkeys(result.skipped)
                bar.update()
        report.skipped = list(skipped)
        report.seconds = time.monotonic() - started
        _write_report(root, report)
    if skipped:
        logger.info("%s: not used: %s", source.root, ", ".join(skipped))
    if not report.converted:
        reasons = "\n- ".join(f"{entry['source']}: {entry['reason']}" for entry in report.dropped[:20])
        raise SourceError(f"{source.root}: no episode can be converted\n- {reasons}")
    return report


def _save(writer: RobotDatasetWriter, reference: EpisodeReference, result: Converted) -> dict[str, Any]:
    entry = {
        "episode": writer.num_episodes,
        "source": reference.name,
        "frames": result.episode.length,
        "trimmed": result.trimmed,
    }
    append_json_lines(writer.root / JOURNAL_PATH, [entry])
    writer.save_prepared(result.episode)
    for folder in {path.parent for path in result.episode.videos.values()}:
        shutil.rmtree(folder, ignore_errors=True)
    return entry


def _write_report(root: Path, report: ConversionReport) -> None:
    write_json(root / REPORT_PATHS[0], report.to_dict())
    write_text(root / REPORT_PATHS[1], report.text())


def _resume(root: Path, source: Source, mapping: ConversionMapping) -> list[dict[str, Any]]:
    """Journal entries of the episodes that are saved already; ValueError if they are another conversion's."""
    if not (root / INFO_PATH).is_file():
        return []
    path = root / MAPPING_PATH
    total = read_info(root).total_episodes
    if not path.is_file():
        if total:
            raise ValueError(f"{root}: holds a dataset that no conversion made; choose another folder")
        return []
    if not total:
        shutil.rmtree(root / "meta")  # of a conversion that saved nothing: the next one may be another
        return []
    former = json.loads(path.read_text(encoding="utf-8"))
    now = {"source": source.root.name, "mapping": json.loads(json.dumps(mapping.to_dict()))}
    if former != now:
        differing = sorted(
            {key for key in (*former.get("mapping", {}), *now["mapping"])
             if former.get("mapping", {}).get(key) != now["mapping"].get(key)}
            | ({"source"} if former.get("source") != now["source"] else set())
        )  # fmt: skip
        raise ValueError(f"{root}: was converted with other {differing}; match them, or choose another folder")
    entries, _ = read_json_lines(root / JOURNAL_PATH)
    by_episode = {entry["episode"]: entry for entry in entries if entry["episode"] < total}
    if sorted(by_episode) != list(range(total)):
        raise ValueError(f"{root}: {JOURNAL_PATH} lacks some of the {total} episodes; convert into a new folder")
    return [by_episode[episode] for episode in range(total)]


def _features(
    root: Path, source: Source, mapping: ConversionMapping, references: Sequence[EpisodeReference]
) -> dict[str, dict[str, Any]]:
    """Features of the dataset: those of the existing one, or after the first episode that can be read."""
    sizes = {name: camera.resize for name, camera in mapping.cameras.items()}
    if (root / INFO_PATH).is_file():
        existing = read_info(root).features
        sizes = {name: tuple(existing[name]["shape"][:2]) for name in sizes}
    elif not all(sizes.values()):
        sizes = _first_sizes(source, mapping, references)
    features: dict[str, dict[str, Any]] = {}
    for key, specs in (("observation.state", mapping.state), ("action", mapping.action)):
        names = [name for spec in specs for name in spec.names]
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
    for name, size in sizes.items():
        assert size is not None
        if mapping.storage == "video" and (size[0] % 2 or size[1] % 2):
            raise MappingError(
                f"cameras.{name}: {size[0]} x {size[1]}: video needs even sizes; resize, or storage: image"
            )
        features[name] = {
            "dtype": mapping.storage, "shape": [*size, 3], "names": ["height", "width", "channels"],
        }  # fmt: skip
    return features


def _first_sizes(
    source: Source, mapping: ConversionMapping, references: Sequence[EpisodeReference]
) -> dict[str, tuple[int, int] | None]:
    reasons = []
    for reference in references:
        if reference.problem is not None:
            reasons.append(f"{reference.name}: {reference.problem}")
            continue
        try:
            with source.open(reference) as episode:
                sizes: dict[str, tuple[int, int] | None] = {}
                for name, camera in mapping.cameras.items():
                    if camera.source not in episode.cameras:
                        have = sorted(episode.cameras) or "no camera"
                        raise SourceError(f"{name}: {camera.source} is missing; the episode has {have}")
                    height, width = next(iter(episode.cameras[camera.source].read())).shape[:2]
                    sizes[name] = camera.resize or (height, width)
                return sizes
        except Exception as error:  # whatever a damaged file makes a library raise
            reasons.append(f"{reference.name}: {error or type(error).__name__}")
    raise SourceError(f"{source.root}: no episode can be converted\n- " + "\n- ".join(reasons[:20]))


def _results(
    converter: EpisodeConverter, references: Sequence[EpisodeReference], workers: int
) -> Iterator[tuple[EpisodeReference, Converted | SourceError]]:
    """Results in the order of the references; at most a few episodes are finished ahead of the one that is saved."""
    if workers == 1:
        for reference in references:
            yield reference, _attempt(converter, reference)
        return
    context = multiprocessing.get_context("spawn")
    pending: deque[tuple[EpisodeReference, Future[Converted | SourceError]]] = deque()
    queue = iter(references)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(converter,)) as pool:
        try:
            for reference in queue:
                pending.append((reference, pool.submit(_convert_in_worker, reference)))
                if len(pending) > 2 * workers:
                    reference, future = pending.popleft()
                    yield reference, future.result()
            while pending:
                reference, future = pending.popleft()
                yield reference, future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"{reference.name}, or an episode next to it: a worker process was killed (out of memory?); the episodes"
                " before it are saved. Run the same command again with --workers 1 to see which it is"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(converter: EpisodeConverter, reference: EpisodeReference) -> Converted | SourceError:
    staging = converter.staging / f"episode-{secrets.token_hex(8)}"
    try:
        return replace(converter, staging=staging)(reference)
    except SourceError as error:
        return error


_converter: EpisodeConverter  # of a worker process, set when it starts


def _start_worker(converter: EpisodeConverter) -> None:
    global _converter
    _converter = converter


def _convert_in_worker(reference: EpisodeReference) -> Converted | SourceError:
    return _attempt(_converter, reference)
