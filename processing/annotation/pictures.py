"""Single pictures of a dataset as JPEG, decoded when asked for, with a bounded cache."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from syvla.processing.image_inputs import to_rgb
from syvla.processing.robot_data.lerobot_format import image_size
from syvla.processing.robot_data.metadata import DatasetMetadata
from syvla.processing.robot_data.open_videos import OPEN_VIDEOS

CACHE_BYTES = 64 * 2**20
"""Of JPEGs. Ours: about 3000 pictures of 480 x 640."""
GROUP_BYTES = 512 * 2**20
"""Largest row group that is read for one picture out of a parquet file, and all that are kept. Ours."""
_QUALITY = 85


class Pictures:
    """The pictures of a dataset's cameras.

    Args:
        metadata: Of the dataset.
        files: Data file of each episode.
        timestamps: float64 (N,), of all frames.
        starts: First frame of each episode among all.
        tolerance_s: See `RobotDataset`.
    """

    def __init__(
        self,
        metadata: DatasetMetadata,
        files: Sequence[str],
        timestamps: np.ndarray,
        starts: np.ndarray,
        tolerance_s: float,
    ) -> None:
        self._metadata, self._files, self._tolerance = metadata, files, tolerance_s
        self._timestamps, self._starts = timestamps, starts
        self._features = metadata.info.features
        self._jpegs = _Cache(CACHE_BYTES)
        self._groups = _Cache(GROUP_BYTES)
        self._reading = threading.Lock()

    def jpeg(self, episode: int, frame: int, camera: str, side: int) -> bytes:
        """A picture, its longer side at most `side` pixels.

        Raises:
            ValueError: It cannot be decoded; names the file.
        """
        key = (episode, frame, camera, side)
        found = self._jpegs.get(key)
        if found is None:
            found = to_jpeg(self.read(episode, frame, camera), side)
            self._jpegs.put(key, found, len(found))
        return bytes(found)

    def read(self, episode: int, frame: int, camera: str) -> np.ndarray:
        """Decodes a picture, uint8 (H, W, 3); raises ValueError that names the file where it cannot."""
        if self._features[camera]["dtype"] == "video":
            segment = self._metadata.video(episode, camera)
            stored = float(self._timestamps[self._starts[episode] + frame])
            exact = frame / self._metadata.info.fps  # stored in float32, which is too coarse in long episodes
            time = segment.start + (exact if abs(exact - stored) <= self._tolerance else stored)
            path = self._metadata.root / segment.path
            return OPEN_VIDEOS.read(path, image_size(self._features[camera]), time, self._tolerance)
        return self._stored(episode, frame, camera)

    def _stored(self, episode: int, frame: int, camera: str) -> np.ndarray:
        path = self._metadata.root / self._files[episode]
        try:
            data = self._bytes(episode, frame, camera)
            if data is None:
                raise ValueError("the image is not embedded in the parquet file; convert the dataset so that it is")
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
            if (image.height, image.width) != image_size(self._features[camera]):
                raise ValueError(f"the image is {image.height} x {image.width}, unlike meta/info.json says")
            return np.array(to_rgb(image))
        except (ValueError, OSError, SyntaxError, pa.ArrowException, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: episode {episode}, frame {frame}, {camera}: {error}") from error

    def _bytes(self, episode: int, frame: int, camera: str) -> bytes | None:
        """What a parquet file holds of a picture. Its row group is read whole and kept: people look at neighbors."""
        key = (episode, camera)
        with self._reading:
            found = self._groups.get(key)
            if found is None:
                found = self._episode_images(episode, camera)
                self._groups.put(key, found, found.nbytes)
        value: bytes | None = found[frame].as_py()
        return value

    def _episode_images(self, episode: int, camera: str) -> Any:
        """The stored pictures (T,) of an episode, binary."""
        with pq.ParquetFile(self._metadata.root / self._files[episode]) as file:
            nested = pa.types.is_struct(file.schema_arrow.field(camera).type)
            leaf = f"{camera}.bytes" if nested else camera
            parts = []
            for group in range(file.num_row_groups):
                if not _may_hold(file.metadata.row_group(group), episode):
                    continue
                owner = file.read_row_group(group, columns=["episode_index"]).column(0).to_numpy()
                rows = np.flatnonzero(owner == episode)
                if not len(rows):
                    continue
                columns = [file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns)]
                size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == leaf)
                if size > GROUP_BYTES:
                    raise ValueError(f"row group {group} holds {size} bytes of {camera}, more than {GROUP_BYTES}")
                column = file.read_row_group(group, columns=[leaf]).column(0)
                for chunk in column.take(pa.array(rows)).chunks:
                    parts.append(chunk.field("bytes") if nested else chunk)
            return pa.chunked_array(parts, type=parts[0].type if parts else pa.binary()).combine_chunks()


def _may_hold(group: Any, episode: int) -> bool:
    """Whether a row group may hold rows of an episode, by its statistics."""
    columns = [group.column(index) for index in range(group.num_columns)]
    found = [column.statistics for column in columns if column.path_in_schema == "episode_index"]
    if not found or found[0] is None or not found[0].has_min_max:
        return True
    return bool(found[0].min <= episode <= found[0].max)


def to_jpeg(picture: np.ndarray, side: int) -> bytes:
    """A picture uint8 (H, W, 3) as JPEG, its longer side at most `side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


class _Cache:
    """The values used last, up to a number of bytes. Threads may share one."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._mutex = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._mutex:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        with self._mutex:
            self._size += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = (value, size)
            while self._size > self._limit and len(self._values) > 1:
                self._size -= self._values.popitem(last=False)[1][1]
