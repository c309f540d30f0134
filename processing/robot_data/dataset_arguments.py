"""What can be said against the arguments of a dataset from its metadata alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from syvla.processing.transforms import infer_cameras

from .lerobot_format import is_depth
from .metadata import DatasetMetadata
from .vector_parts import VectorKey, VectorPart, read_modality, vector_parts

logger = logging.getLogger(__name__)


def chosen_vectors(
    metadata: DatasetMetadata, keys: dict[str, VectorKey], problems: list[str]
) -> dict[str, tuple[VectorPart, ...]]:
    """Parts of state and action; what is wrong with them is added to the problems."""
    found: dict[str, tuple[VectorPart, ...]] = {}
    try:
        modality = read_modality(metadata.root)
    except ValueError as error:
        problems.append(str(error))
        return found
    for kind, key in keys.items():
        try:
            found[kind] = vector_parts(kind, key, metadata.info.features, modality)
        except ValueError as error:
            problems.append(str(error))
            continue
        if len(found[kind]) > 1:
            logger.info("%s: %s = %s", metadata.root, kind, " + ".join(map(str, found[kind])))
    return found


def argument_problems(
    metadata: DatasetMetadata,
    episodes: Sequence[int],
    cameras: dict[str, str] | None,
    views: Sequence[str],
    thought_source: str | None,
) -> list[str]:
    """What is wrong with a choice of episodes, cameras and thoughts, a message with its fix each."""
    features, total = metadata.info.features, metadata.info.total_episodes
    problems = []
    if not total:
        problems.append("the dataset has no episodes; record some")
    if outside := [episode for episode in episodes if not 0 <= episode < total]:
        problems.append(f"episodes: {outside[:10]} do not exist; the dataset has episodes 0 to {total - 1}")
    if total and not len(episodes):
        problems.append("episodes: the list is empty; select at least one, or None for all")
    if len(set(episodes)) < len(episodes):
        problems.append("episodes: an episode is listed twice; list each once")
    available = metadata.info.camera_keys
    if cameras is None:
        try:
            infer_cameras(available, views) if available else problems.append(
                "cameras: the dataset has no camera feature"
            )
        except ValueError as error:
            problems.append(str(error))
    else:
        for view, key in cameras.items():
            if key not in available:
                depth = " (a depth map)" if key in features and is_depth(features[key]) else ""
                problems.append(
                    f"cameras: {view}: {key!r}{depth} is no camera of this dataset; choose from {available}"
                )
    if thought_source not in (None, "auto") and features.get(thought_source, {}).get("dtype") not in (
        "string",
        "language",
    ):
        texts = [key for key, feature in features.items() if feature["dtype"] in ("string", "language")]
        problems.append(f"thought_source: {thought_source!r} is no text column of this dataset; choose from {texts}")
    return problems
