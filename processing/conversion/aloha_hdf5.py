"""ALOHA's HDF5: one file per episode, as ACT, Mobile ALOHA, Cobot Magic and RoboMIND write it.

ACT and Cobot Magic: `observations/{qpos,qvel,effort}` and `action` (n, 14), `base_action` (n, 2), and
`observations/images/CAMERA`, raw uint8 (n, H, W, 3) or JPEGs padded with zeros to one length, whose true lengths are in
`compress_len`. RoboMIND: `puppet/*` is the state, `master/*` the action, `observations/rgb_images/CAMERA` holds JPEGs of
their own length; depth is left out. The attributes `sim` and `compress` are not relied on: the data says how it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .hdf5_files import (
    camera_frames,
    datasets_below,
    is_encoded,
    is_frames,
    is_vector,
    open_hdf5,
    read_vector,
    shapes_below,
    text_of,
)
from .source import EpisodeReference, SourceEpisode, SourceError

_LENGTHS = "compress_len"


@dataclass(frozen=True)
class AlohaSource:
    """A folder with one HDF5 file per episode, or a single such file."""

    root: Path
    format: str = "aloha-hdf5"

    def episodes(self) -> list[EpisodeReference]:
        files = (
            [self.root] if self.root.is_file() else sorted(self.root.rglob("*.hdf5")) + sorted(self.root.rglob("*.h5"))
        )
        if not files:
            raise SourceError(f"{self.root}: no .hdf5 or .h5 files; pass the folder that holds the episodes")
        base = self.root.parent if self.root.is_file() else self.root
        files.sort(key=lambda path: (path.parent, _natural(path.name)))
        return [EpisodeReference(path.relative_to(base).as_posix(), path) for path in files]

    @contextmanager
    def open(self, reference: EpisodeReference) -> Iterator[SourceEpisode]:
        with open_hdf5(reference.path) as file:
            found = datasets_below(file)
            lengths = found.pop(_LENGTHS, None)
            lengths = None if lengths is None else read_vector(_LENGTHS, lengths)
            vectors, cameras, texts, skipped = {}, {}, {"file_name": reference.path.stem}, []
            for path, dataset in found.items():
                if "depth" in path:
                    skipped.append(f"{path} (depth)")
                elif is_frames(dataset) or (is_encoded(dataset) and "image" in path):
                    cameras[path] = camera_frames(path, dataset, lengths)
                elif is_vector(dataset):
                    vectors[path] = read_vector(path, dataset)
                elif (text := text_of(dataset)) is not None:
                    texts[path] = text
                else:
                    skipped.append(f"{path} ({dataset.dtype} {dataset.shape})")
            for name, value in file.attrs.items():
                if (text := text_of(value)) is not None:
                    texts[f"attribute:{name}"] = text
            yield SourceEpisode(vectors, cameras, texts, tuple(skipped))

    def preset(self) -> str | None:
        """`aloha` for the fourteen joints of ACT's layout; RoboMIND's robots are told apart by their mapping alone."""
        for reference in self.episodes()[:5]:
            shapes = shapes_below(reference.path)
            joints = [shapes[key][1:] for key in ("observations/qpos", "action") if key in shapes]
            cameras = {path.rsplit("/", 1)[-1] for path in shapes if path.startswith("observations/images/")}
            if joints == [(14,), (14,)] and {"cam_high", "cam_left_wrist", "cam_right_wrist"} <= cameras:
                return "aloha"
        return None


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts episode_10 after episode_9."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for character in f"{name}\0":
        if character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((int(digits[:18]), ""))
            digits = ""
        parts.append((-1, character))
    return tuple(parts)
