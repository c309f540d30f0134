"""Checks a dataset against itself, the model and the processor before training, and lists every problem at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .multimodal.dataset import MultimodalDataset
from .multimodal.sources import BrokenRow
from .normalization import offset_and_scale
from .robot_data.lerobot_format import DatasetError
from .robot_data.robot_dataset import RobotDataset
from .robot_data.video import VideoError, VideoReader

logger = logging.getLogger(__name__)

WARNING = "warning: "  # how a message starts that does not stand in the way of training
_MANY_EPISODES = 200


def validate_dataset(
    dataset: RobotDataset,
    config: Any = None,
    processor: Any = None,
    *,
    count_tokens: Callable[[str], int] | None = None,
    max_tokens: int | None = None,
    images: str = "ends",
) -> list[str]:
    """Collects everything wrong with a dataset in one pass.

    Files, metadata and column sizes are checked when a `RobotDataset` is opened; this adds values, images and the fit to
    the model.

    Args:
        dataset: The dataset.
        config: The model's `SyVLAConfig`: its embodiments, views and chunk size are compared.
        processor: The `SyVLAProcessor`: its statistics are compared and the longest sample is put through it.
        count_tokens: Number of tokens of a text; None takes the processor's tokenizer.
        max_tokens: Largest allowed number; None takes the processor's `max_length`.
        images: Which images are decoded: "ends" (first and last of each episode and view), "all" or "none". Of a streamed
            dataset neither images nor values are looked at: they are checked when they are read.

    Returns:
        One message per problem, with its fix; those that begin with "warning: " allow training.
    """
    if images not in ("ends", "all", "none"):
        raise ValueError(f"images: expected 'ends', 'all' or 'none', got {images!r}")
    if dataset.streamed and images == "all":
        raise ValueError(
            f"validate_images: 'all' would fetch all of {dataset.root.name}, which is streamed; images and values are checked "
            "when they are read: leave validate_images out"
        )
    if dataset.streamed:
        images = "none"
    problems = [
        *_dimension_problems(dataset, config),
        *_view_problems(dataset, config, processor),
        *_statistics_problems(dataset, processor),
        *([] if dataset.streamed else _value_problems(dataset)),
        *_chunk_problems(dataset, config, processor),
        *_text_problems(dataset, processor, count_tokens, max_tokens),
        *_video_length_problems(dataset, images),
        *_image_problems(dataset, images),
    ]
    if processor is not None and hasattr(processor, "collate") and not _errors(problems):
        problems += _sample_problems(dataset, processor)
    return list(dict.fromkeys(problems))


def require_valid(
    datasets: RobotDataset | Sequence[RobotDataset], config: Any = None, processor: Any = None, **options: Any
) -> None:
    """Validates one or more datasets (options of `validate_dataset`) and logs warnings.

    Raises:
        DatasetError: A ValueError that lists every problem of every dataset with its fix.
    """
    members = [datasets] if isinstance(datasets, RobotDataset) else list(datasets)
    found: list[str] = []
    for dataset in members:
        problems = validate_dataset(dataset, config, processor, **options)
        for problem in problems:
            if problem.startswith(WARNING):
                logger.warning("%s: %s", dataset.root, problem.removeprefix(WARNING))
        found += [problem if len(members) == 1 else f"{dataset.root}: {problem}" for problem in _errors(problems)]
    if found:
        raise DatasetError(members[0].root if len(members) == 1 else f"{len(members)} datasets", found)


def require_valid_chats(datasets: Sequence[MultimodalDataset], processor: Any, rows: int = 64) -> None:
    """Reads rows spread evenly over each multi-modal dataset and puts each through the processor.

    Rows that cannot be used are skipped in training and only logged here, with the share that they make up.

    Args:
        datasets: Multi-modal datasets.
        processor: The `SyVLAProcessor`.
        rows: Rows to try of each dataset; the first and the last are among them.

    Raises:
        DatasetError: A ValueError that lists every row which the processor refuses, and every dataset without rows or of
            which no row that was tried can be used.
    """
    problems = []
    for dataset in datasets:
        if not len(dataset):
            problems.append(f"{dataset.name}: holds no rows; leave it out")
            continue
        tried = sorted({int(row) for row in np.linspace(0, len(dataset) - 1, min(rows, len(dataset)))})
        broken = []
        for row in tried:
            try:
                item = dataset.read_row(row)
            except BrokenRow as error:
                broken.append(str(error))
                continue
            try:
                processor.collate([item])
            except ValueError as error:
                problems.append(f"{dataset.name}, row {row}: {error}")
        if len(broken) == len(tried):
            problems.append(
                f"{dataset.name}: none of the {len(tried)} rows tried can be used, for example: {broken[0]}"
            )
        elif broken:
            logger.warning(
                "%s: %d of %d rows tried cannot be used and will be skipped, for example: %s",
                dataset.name,
                len(broken),
                len(tried),
                broken[0],
            )
    if problems:
        raise DatasetError("multi-modal data", problems)


def _errors(problems: Sequence[str]) -> list[str]:
    return [problem for problem in problems if not problem.startswith(WARNING)]


def _dimension_problems(dataset: RobotDataset, config: Any) -> Iterator[str]:
    if config is None:
        return
    dims = config.embodiments.get(dataset.embodiment)
    if dims is None:
        yield (
            f"embodiment {dataset.embodiment!r} is unknown to the model (it has {sorted(config.embodiments) or 'none'});"
            f" add it with model.add_embodiment({dataset.embodiment!r}, {dataset.state_dim}, {dataset.action_dim})"
        )
        return
    for kind, key in (("state", dataset.state_key), ("action", dataset.action_key)):
        found, expected = getattr(dataset, f"{kind}_dim"), dims[f"{kind}_dim"]
        if found != expected:
            yield (
                f"{key}: {found} dimensions, but the model's embodiment {dataset.embodiment!r} has {kind}_dim {expected};"
                f" choose another {kind}_key, or give this robot an embodiment of its own"
            )


def _view_problems(dataset: RobotDataset, config: Any, processor: Any) -> Iterator[str]:
    views = getattr(processor, "views", None) or getattr(config, "views", None)
    if not dataset.cameras:
        yield f"cameras: none; map at least one view to one of {dataset.info.camera_keys}"
    if views is None:
        return
    for view in dataset.cameras:
        if view not in views:
            yield (
                f"cameras: {view!r} is no view of the model, which has {list(views)}; rename it, or give the model other"
                " views (syvla-finetune --views)"
            )
    if missing := [view for view in views if view not in dataset.cameras]:
        yield f"{WARNING}cameras: no camera for {missing}; these views are masked"


def _statistics_problems(dataset: RobotDataset, processor: Any) -> Iterator[str]:
    if processor is None:
        return
    fix = (
        "compute them with syvla-finetune (or syvla-pretrain) --recompute_statistics true, or call"
        f" processor.set_embodiment({dataset.embodiment!r}, statistics=dataset.statistics())"
    )
    entry = processor.embodiments.get(dataset.embodiment)
    if entry is None:
        yield f"statistics: the processor has none for embodiment {dataset.embodiment!r}; {fix}"
        return
    for kind in ("state", "action"):
        statistics = (entry.get("statistics") or {}).get(kind)
        mode = (entry.get("normalization") or {}).get(kind, "mean_std")
        if not statistics:
            yield f"statistics: {kind} is missing for embodiment {dataset.embodiment!r}; {fix}"
            continue
        try:
            size = len(statistics["mean"]) if mode == "identity" else len(offset_and_scale(statistics, mode)[0])
        except (ValueError, KeyError) as error:
            yield f"statistics of {kind}, embodiment {dataset.embodiment!r}: {error}"
            continue
        if size != getattr(dataset, f"{kind}_dim"):
            yield (
                f"statistics: {kind} of embodiment {dataset.embodiment!r} has {size} dimensions, the dataset has"
                f" {getattr(dataset, f'{kind}_dim')}; {fix}"
            )


def _value_problems(dataset: RobotDataset) -> Iterator[str]:
    for key, values in ((dataset.state_key, dataset.states), (dataset.action_key, dataset.actions)):
        finite = np.isfinite(values)
        if finite.all():
            continue
        frames, dimensions = np.nonzero(~finite)
        positions = np.unique(np.searchsorted(dataset.episode_starts, frames, side="right") - 1)
        episodes = [dataset.episodes[position] for position in positions]
        yield (
            f"{key}: {len(frames)} values are NaN or infinite, in dimensions {np.unique(dimensions).tolist()} of episodes"
            f" {_short(episodes)}; repair them or leave these episodes out (episodes=[...])"
        )


def _chunk_problems(dataset: RobotDataset, config: Any, processor: Any) -> Iterator[str]:
    for owner, source in (("model", config), ("processor", processor)):
        size = getattr(source, "chunk_size", None)
        if size is not None and size != dataset.chunk_size:
            yield f"chunk_size: {dataset.chunk_size} here, {size} in the {owner}; pass chunk_size={size} to RobotDataset"
    lengths = dataset.episode_lengths
    short = int((lengths < dataset.chunk_size).sum())
    if short == len(lengths):
        yield (
            f"chunk_size: {dataset.chunk_size} is longer than every episode (the longest has {int(lengths.max())} frames), so"
            " no chunk is ever complete; use a model with a shorter chunk, or record longer episodes"
        )
    elif short:
        yield (
            f"{WARNING}chunk_size {dataset.chunk_size} is longer than {short} of {dataset.num_episodes} episodes"
            f" (the shortest has {int(lengths.min())} frames); their chunks are padded to the end"
        )


def _text_problems(
    dataset: RobotDataset, processor: Any, count_tokens: Callable[[str], int] | None, max_tokens: int | None
) -> Iterator[str]:
    texts = {"instruction": dataset.used_tasks, "thought": dataset.thoughts}
    if empty := [task for task in dataset.used_tasks if not task.strip()]:
        yield f"{WARNING}instruction: {len(empty)} of {len(dataset.used_tasks)} are empty; the model cannot know what to do"
    tokenizer = getattr(processor, "tokenizer", None)
    if count_tokens is None and tokenizer is not None:
        count_tokens = _counter(tokenizer)
    limit = max_tokens if max_tokens is not None else getattr(processor, "max_length", None)
    if count_tokens is None or limit is None:
        return
    for name, members in texts.items():
        counts = {text: count_tokens(text) for text in members}
        if too_long := [text for text in members if counts[text] > limit]:
            longest = max(too_long, key=counts.__getitem__)
            yield (
                f"{name}: {len(too_long)} of {len(members)} have more than the {limit} tokens that fit, the longest"
                f" {counts[longest]} ({longest[:60]!r}...); shorten them in the dataset or raise processor.max_length"
            )


def _counter(tokenizer: Any) -> Callable[[str], int]:
    return lambda text: len(tokenizer(text)["input_ids"])


def _video_length_problems(dataset: RobotDataset, images: str) -> Iterator[str]:
    """Compares the number of frames of each video file with what all its episodes need."""
    if images == "none":
        return
    for view, key in dataset.cameras.items():
        if dataset.features[key]["dtype"] != "video":
            continue
        used = {dataset.metadata.video(episode, key).path for episode in dataset.episodes}
        needed: dict[str, int] = {}
        for episode, length in enumerate(dataset.metadata.lengths):
            segment = dataset.metadata.video(episode, key)
            if segment.path in used:
                end = round(segment.start * dataset.fps) + int(length)
                needed[segment.path] = max(end, needed.get(segment.path, 0))
        for path, frames in tqdm(needed.items(), desc=f"Checking {view}", disable=len(needed) < _MANY_EPISODES):
            try:
                reader = VideoReader(dataset.root / path)
                found = reader.num_frames
                reader.close()
            except VideoError:
                continue  # reported with its images
            if found != frames:
                level = "" if found < frames else WARNING
                yield (
                    f"{level}{path}: the video has {found} frames, its episodes have {frames} in the parquet files;"
                    " download or record it again"
                )


def _image_problems(dataset: RobotDataset, images: str) -> Iterator[str]:
    if images == "none":
        return
    if images == "all":
        frames = np.arange(len(dataset))
    else:
        frames = np.stack([dataset.episode_starts, dataset.episode_starts + dataset.episode_lengths - 1], 1).ravel()
    progress = tqdm(frames, desc="Checking images", disable=len(frames) < 2 * _MANY_EPISODES, leave=False)
    broken: set[tuple[str, int]] = set()
    for frame in progress:
        episode = int(np.searchsorted(dataset.episode_starts, frame, side="right"))
        for view in dataset.cameras:
            if (view, episode) in broken:
                continue  # one message per episode and view
            try:
                dataset.read_image(view, int(frame))
            except ValueError as error:
                broken.add((view, episode))
                yield str(error)


def _sample_problems(dataset: RobotDataset, processor: Any) -> Iterator[str]:
    """Puts the frames with the longest instruction and the longest thought through the processor."""
    for frame in sorted(dataset.longest_text_frames()):
        try:
            processor.collate([dataset[frame]])
        except ValueError as error:
            yield f"frame {frame}: {error}"


def _short(values: Sequence[Any], limit: int = 10) -> str:
    text = ", ".join(map(str, values[:limit]))
    return f"{text}, ... ({len(values)} in all)" if len(values) > limit else text
