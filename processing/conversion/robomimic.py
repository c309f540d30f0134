"""robomimic's HDF5, and LIBERO's demonstrations in it: many episodes per file, `data/demo_N/{obs/*,actions}`.

robomimic stores pictures upright. LIBERO's demonstrations hold them as OpenGL renders them, bottom row first; published
checkpoints and this project's LIBERO environments turn them by half a turn, as the mapping `libero` does. Actions are
those of robosuite's operational-space controller, in [-1, 1]; of the gripper -1 opens and +1 closes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hdf5_files import (
    camera_frames,
    datasets_below,
    group_at,
    is_encoded,
    is_frames,
    is_vector,
    open_hdf5,
    read_vector,
    shapes_below,
    text_of,
)
from .source import EpisodeReference, SourceEpisode, SourceError

_REPEATED = ("next_obs/", "states")  # the observation of the following step again; the simulator's whole state


@dataclass(frozen=True)
class RobomimicSource:
    """A file, or a folder of files, each with many demonstrations."""

    root: Path
    format: str = "robomimic"

    def episodes(self) -> list[EpisodeReference]:
        files = [self.root] if self.root.is_file() else sorted([*self.root.rglob("*.hdf5"), *self.root.rglob("*.h5")])
        if not files:
            raise SourceError(f"{self.root}: no .hdf5 files; pass a file of demonstrations or a folder of them")
        base = self.root.parent if self.root.is_file() else self.root
        found = []
        for path in files:
            name = path.relative_to(base).as_posix()
            try:
                with open_hdf5(path) as file:
                    demos = sorted(group_at(file, "data"), key=lambda demo: (len(demo), demo))
                found += [EpisodeReference(f"{name}:{demo}", path, f"data/{demo}") for demo in demos]
            except SourceError as error:
                found.append(EpisodeReference(name, path, problem=str(error)))
        return found

    @contextmanager
    def open(self, reference: EpisodeReference) -> Iterator[SourceEpisode]:
        with open_hdf5(reference.path) as file:
            group = group_at(file, reference.part)
            vectors, cameras, skipped = {}, {}, []
            for path, dataset in datasets_below(group).items():
                if path.startswith(_REPEATED):
                    continue
                if "depth" in path:
                    skipped.append(f"{path} (depth)")
                elif is_frames(dataset) or is_encoded(dataset):
                    cameras[path] = camera_frames(path, dataset)
                elif is_vector(dataset):
                    vectors[path] = read_vector(path, dataset)
                else:
                    skipped.append(f"{path} ({dataset.dtype} {dataset.shape})")
            yield SourceEpisode(vectors, cameras, _texts(file["data"], reference.path), tuple(skipped))

    def preset(self) -> str | None:
        """`libero` for files with its names of cameras and states."""
        wanted = {"obs/agentview_rgb", "obs/eye_in_hand_rgb", "obs/ee_states", "obs/gripper_states"}
        for reference in self.episodes()[:5]:
            if reference.problem is None and wanted <= set(shapes_below(reference.path, reference.part)):
                return "libero"
        return None


def _texts(data: Any, path: Path) -> dict[str, str]:
    texts = {"file_name": path.stem.removesuffix("_demo").replace("_", " ")}
    problem = _json(text_of(data.attrs.get("problem_info", "")))
    if isinstance(problem.get("language_instruction"), str):
        texts["language_instruction"] = problem["language_instruction"].strip('"')
    environment = _json(text_of(data.attrs.get("env_args", "")))
    if isinstance(environment.get("env_name"), str):
        texts["env_name"] = environment["env_name"]
    return texts


def _json(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
