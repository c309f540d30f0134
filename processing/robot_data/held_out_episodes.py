"""Which episodes of a dataset are held out from training, to measure a policy on what it has not seen."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .lerobot_format import INFO_PATH
from .metadata import DatasetMetadata

EvalSplit = float | str | Sequence[int]
"""A share of the episodes, the name of one of `info.json`'s `splits`, or the numbers of episodes."""

TRAINING_SPLIT = "train"


@dataclass(frozen=True)
class EpisodeSplit:
    """Episodes of a dataset: those to train on and those held out, which have none in common."""

    train: list[int]
    held_out: list[int]


def split_episodes(
    metadata: DatasetMetadata, eval_split: EvalSplit, episodes: Sequence[int] | None = None
) -> EpisodeSplit:
    """Divides a dataset's episodes; the same for every process and every start of a run.

    Args:
        metadata: Of the dataset.
        eval_split: A share above 0 of `episodes`: those whose numbers come first by a hash, at least one; 1.0 is all. Or the
            name of one of the dataset's splits: all others are trained on, where the dataset has a split "train" those of
            it alone. Or the numbers of episodes.
        episodes: The episodes that the run uses; None: all.

    Raises:
        ValueError: If there is no such split or episode, or the value is of another kind.
    """
    total = metadata.info.total_episodes
    chosen = list(range(total)) if episodes is None else [int(episode) for episode in episodes]
    if isinstance(eval_split, str):
        splits = _splits(metadata)
        held_out = _named(eval_split, splits, metadata)
        train = splits.get(TRAINING_SPLIT)
        if episodes is None and train is not None:
            chosen = list(train)
    elif isinstance(eval_split, float):
        if not 0.0 < eval_split <= 1.0:
            raise ValueError(f"eval_split: expected a share above 0 and up to 1, got {eval_split:g}")
        count = min(len(chosen), max(1, round(eval_split * len(chosen))))
        held_out = sorted(sorted(chosen, key=_rank)[:count])
    elif isinstance(eval_split, int):
        raise ValueError(
            f"eval_split: {eval_split!r} may be a share or an episode; write [{eval_split}] for the episode of this number, or "
            f"{float(eval_split)} for a share"
        )
    else:
        held_out = _numbered(eval_split, total)
    kept = set(held_out)
    return EpisodeSplit([episode for episode in chosen if episode not in kept], held_out)


def _rank(episode: int) -> bytes:
    return hashlib.sha256(str(episode).encode()).digest()


def _numbered(episodes: Sequence[int], total: int) -> list[int]:
    if not isinstance(episodes, list | tuple) or not all(type(episode) is int for episode in episodes) or not episodes:
        raise ValueError(
            "eval_split: expected a share such as 0.1, a list of episode numbers such as [3, 7], or the name of a split, got "
            f"{episodes!r}"
        )
    if outside := [episode for episode in episodes if not 0 <= episode < total]:
        raise ValueError(f"eval_split: episodes {outside[:10]} do not exist; the dataset has episodes 0 to {total - 1}")
    if len(set(episodes)) < len(episodes):
        raise ValueError(f"eval_split: an episode is listed twice in {list(episodes)}; list each once")
    return list(episodes)


def _named(name: str, splits: dict[str, range], metadata: DatasetMetadata) -> list[int]:
    if name == TRAINING_SPLIT or name not in splits:
        known = sorted(set(splits) - {TRAINING_SPLIT})
        what = "is what is trained on" if name == TRAINING_SPLIT else "is no split of this dataset"
        raise ValueError(
            f"eval_split: {name!r} {what}; {metadata.root / INFO_PATH} names {known or 'no others'}. Give one of them, a share "
            "such as 0.1, or a list of episode numbers"
        )
    if not splits[name]:
        raise ValueError(f"eval_split: the split {name!r} of {metadata.root / INFO_PATH} has no episodes")
    return list(splits[name])


def _splits(metadata: DatasetMetadata) -> dict[str, range]:
    """Episodes of each split of `info.json`, which says them as "first:one past the last"."""
    raw = metadata.info.raw.get("splits") or {}
    where, total = f"{metadata.root / INFO_PATH}: splits", metadata.info.total_episodes
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected an object, got {type(raw).__name__}; correct it")
    found: dict[str, range] = {}
    for name, value in raw.items():
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", value) if isinstance(value, str) else None
        begin, end = (int(match[1]), int(match[2])) if match else (0, math.inf)
        if not begin <= end <= total:
            raise ValueError(f"{where}: {name!r} is {value!r:.60}, expected 'first:last' within 0:{total}; correct it")
        found[name] = range(begin, int(end))
    return found
