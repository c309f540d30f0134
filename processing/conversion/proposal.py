"""A first mapping for a source that no preset fits: every key by its own name, units unknown, nothing assumed silently."""

from __future__ import annotations

import re

from .mapping import CameraSpec, ConversionMapping, VectorSpec
from .source import Source, SourceEpisode, SourceError

_ACTION = re.compile(r"(^|/)(actions?|master|base_action)(/|$)|^action", re.IGNORECASE)
_NEITHER = re.compile(
    r"(^|/)(rewards?|dones?|discount|is_(first|last|terminal)|timestamps?|.*embedding)$", re.IGNORECASE
)
_TEXTS = ("language_instruction", "observation/natural_language_instruction", "language_raw", "instruction", "task")
_MAX_DIMENSIONS = 512


def propose(source: Source) -> ConversionMapping:
    """A mapping with every vector and camera of the first episode that can be read.

    Raises:
        SourceError: No episode can be read, or it has no camera, no state or no action; says what it has.
    """
    reasons = []
    for reference in source.episodes():
        try:
            if reference.problem is not None:
                raise SourceError(reference.problem)
            with source.open(reference) as episode:
                return _propose(source, episode)
        except Exception as error:  # whatever a damaged file makes a library raise
            reasons.append(f"{reference.name}: {error or type(error).__name__}")
    raise SourceError(f"{source.root}: no episode can be read\n- " + "\n- ".join(reasons[:20]))


def _propose(source: Source, episode: SourceEpisode) -> ConversionMapping:
    kinds: dict[str, list[VectorSpec]] = {"state": [], "action": []}
    for key, values in episode.vectors.items():
        if not _NEITHER.search(key) and 0 < values.shape[1] <= _MAX_DIMENSIONS:
            kinds["action" if _ACTION.search(key) else "state"].append(_spec(key, values.shape[1]))
    cameras: dict[str, CameraSpec] = {}
    for key in episode.cameras:
        name = re.sub(r"[^A-Za-z0-9_]", "_", key.rsplit("/", 1)[-1])
        if f"observation.images.{name}" in cameras:
            name = re.sub(r"[^A-Za-z0-9_]", "_", key)
        cameras[f"observation.images.{name}"] = CameraSpec(key)
    missing = [name for name, found in (*kinds.items(), ("cameras", cameras)) if not found]
    if missing:
        raise SourceError(
            f"no {', '.join(missing)} found; vectors {sorted(episode.vectors)}, cameras {sorted(episode.cameras)}"
        )
    text = next((name for name in _TEXTS if name in episode.texts), None)
    return ConversionMapping(
        source.format, None, tuple(kinds["state"]), tuple(kinds["action"]), cameras, task_source=text
    )


def _spec(key: str, width: int) -> VectorSpec:
    name = key.replace("/", ".")
    return VectorSpec(key, 0, width, (name,) if width == 1 else tuple(f"{name}.{number}" for number in range(width)))
