"""Makes the two tiny datasets beside this file, with pandas, pyarrow, datasets, Pillow and PyAV only.

It follows the description of LeRobot's formats v3.0 and v2.1 and shares no code with this project's reader and writer, so
that each can be checked against it. Run `python tests/data/make_golden_dataset.py`; the result is committed.
"""

import io
import json
import shutil
from pathlib import Path

import av
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).resolve().parent
FPS = 10
LENGTHS = [3, 4]
TASKS = ["pick up the cube", "put down the cube"]
TASK_OF_EPISODE = [1, 0]
# Per episode: (frame from which the thought holds, text).
THOUGHTS = [[(0, "reach the cube"), (2, "grasp the cube")], [(1, "release the cube")]]
IMAGE_SIZE = (6, 8)  # height, width
VIDEO_SIZE = (32, 48)
DEFAULTS = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["joint", "gripper"]},
    "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "gripper"]},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "observation.matrix": {"dtype": "float32", "shape": [2, 3], "names": None},
    "note": {"dtype": "string", "shape": [1], "names": None},
    "observation.images.head": {
        "dtype": "image",
        "shape": [*IMAGE_SIZE, 3],
        "names": ["height", "width", "channels"],
    },
    "observation.images.left_wrist": {
        "dtype": "video",
        "shape": [*VIDEO_SIZE, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": VIDEO_SIZE[0],
            "video.width": VIDEO_SIZE[1],
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.fps": FPS,
            "video.channels": 3,
            "has_audio": False,
            "video.g": 2,
            "video.crf": 23,
            "video.fast_decode": 0,
            "video.video_backend": "pyav",
            "video.extra_options": {},
            "is_depth_map": False,
        },
    },
    **DEFAULTS,
}
LANGUAGE = {"language_persistent": {"dtype": "language", "shape": [1], "names": None}}


def head_image(episode: int, frame: int) -> np.ndarray:
    image = np.zeros((*IMAGE_SIZE, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 10 * episode + frame, 100, 200
    image[0, 0] = 255
    return image


def wrist_image(episode: int, frame: int) -> np.ndarray:
    return np.full((*VIDEO_SIZE, 3), 30 + 100 * episode + 20 * frame, np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def frames_of(episode: int) -> list[dict]:
    first = sum(LENGTHS[:episode])
    return [
        {
            "observation.state": [episode + frame / 10, -float(frame)],
            "action": [episode + frame / 10 + 0.05, float(frame), 1.0 if frame else 0.0],
            "next.done": frame == LENGTHS[episode] - 1,
            "observation.matrix": [[episode, frame, 0.0], [1.0, 2.0, 3.0]],
            "note": f"episode {episode}",
            "observation.images.head": {"bytes": png(head_image(episode, frame)), "path": f"frame-{frame:06d}.png"},
            "timestamp": frame / FPS,
            "frame_index": frame,
            "episode_index": episode,
            "index": first + frame,
            "task_index": TASK_OF_EPISODE[episode],
        }
        for frame in range(LENGTHS[episode])
    ]


def thought_rows(episode: int) -> list[dict]:
    return [
        {
            "role": "assistant",
            "content": text,
            "style": "subtask",
            "timestamp": frame / FPS,
            "camera": None,
            "tool_calls": None,
        }
        for frame, text in THOUGHTS[episode]
    ]


def hf_features(language: bool) -> datasets.Features:
    value, sequence = datasets.Value, datasets.Sequence
    columns = {
        "observation.state": sequence(value("float32"), length=2),
        "action": sequence(value("float32"), length=3),
        "next.done": value("bool"),
        "observation.matrix": datasets.Array2D((2, 3), "float32"),
        "note": value("string"),
        "observation.images.head": datasets.Image(),
        "timestamp": value("float32"),
        "frame_index": value("int64"),
        "episode_index": value("int64"),
        "index": value("int64"),
        "task_index": value("int64"),
    }
    if language:
        row = {
            "role": value("string"),
            "content": value("string"),
            "style": value("string"),
            "timestamp": value("float32"),
            "camera": value("string"),
            "tool_calls": datasets.List(datasets.Json()),
        }
        columns["language_persistent"] = datasets.List(row)
    return datasets.Features(columns)


def table_of(episode: int, language: bool) -> pa.Table:
    rows = frames_of(episode)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    if language:
        columns["language_persistent"] = [thought_rows(episode) for _ in rows]
    data = datasets.Dataset.from_dict(columns, features=hf_features(language))
    return data.with_format("arrow")[:]


def statistics(values: np.ndarray) -> dict:
    """Of vectors (n, D): exact, in float64."""
    values = values.astype(np.float64)
    quantiles = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        **{key: np.quantile(values, level, axis=0).tolist() for key, level in quantiles.items()},
    }


def all_statistics(episodes: list[int]) -> dict:
    rows = [row for episode in episodes for row in frames_of(episode)]
    result = {}
    for key in ("observation.state", "action", "next.done", "observation.matrix", *DEFAULTS):
        dtype = FEATURES[key]["dtype"]
        values = np.array([row[key] for row in rows]).astype(dtype).reshape(-1, FEATURES[key]["shape"][-1])
        result[key] = {**statistics(values), "count": [len(rows)]}
    for key, make in (("observation.images.head", head_image), ("observation.images.left_wrist", wrist_image)):
        images = np.stack([make(row["episode_index"], row["frame_index"]) for row in rows]) / 255.0
        per_channel = {name: [[[v]] for v in value] for name, value in statistics(images.reshape(-1, 3)).items()}
        result[key] = {**per_channel, "count": [len(rows)]}
    return result


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "2", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = *VIDEO_SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")


def make_v3(root: Path) -> None:
    """One data file, one episode file and one video file that hold both episodes."""
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "features": {**FEATURES, **LANGUAGE},
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "robot_type": "toy",
        "splits": {"train": f"0:{len(LENGTHS)}"},
    }
    write_json(root / "meta/info.json", info)
    write_json(root / "meta/stats.json", all_statistics(list(range(len(LENGTHS)))))
    index = pd.Index(TASKS, name="task")
    pd.DataFrame({"task_index": range(len(TASKS))}, index=index).to_parquet(root / "meta/tasks.parquet")

    data = root / "data/chunk-000/file-000.parquet"
    data.parent.mkdir(parents=True)
    tables = [table_of(episode, language=True) for episode in range(len(LENGTHS))]
    with pq.ParquetWriter(data, tables[0].schema, compression="snappy") as writer:
        for table in tables:
            writer.write_table(table)

    video = "observation.images.left_wrist"
    rows = []
    for episode, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:episode])
        row = {
            "episode_index": episode,
            "tasks": [TASKS[TASK_OF_EPISODE[episode]]],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            f"videos/{video}/chunk_index": 0,
            f"videos/{video}/file_index": 0,
            f"videos/{video}/from_timestamp": first / FPS,
            f"videos/{video}/to_timestamp": (first + length) / FPS,
        }
        for key, values in all_statistics([episode]).items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        rows.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    episodes = root / "meta/episodes/chunk-000/file-000.parquet"
    episodes.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), episodes)
    frames = [wrist_image(episode, k) for episode, length in enumerate(LENGTHS) for k in range(length)]
    write_video(root / f"videos/{video}/chunk-000/file-000.mp4", frames)


def make_v21(root: Path) -> None:
    """One data file and one video file per episode; metadata as JSON lines."""
    info = {
        "codebase_version": "v2.1",
        "robot_type": "toy",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "total_videos": len(LENGTHS),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": FEATURES,
    }
    write_json(root / "meta/info.json", info)
    lines: dict[str, list[dict]] = {
        "tasks": [{"task_index": index, "task": task} for index, task in enumerate(TASKS)],
        "episodes": [],
        "episodes_stats": [],
    }
    for episode, length in enumerate(LENGTHS):
        data = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(episode, language=False), data)
        video = root / f"videos/chunk-000/observation.images.left_wrist/episode_{episode:06d}.mp4"
        write_video(video, [wrist_image(episode, frame) for frame in range(length)])
        task = TASKS[TASK_OF_EPISODE[episode]]
        lines["episodes"].append({"episode_index": episode, "tasks": [task], "length": length})
        kept = ("min", "max", "mean", "std", "count")
        stats = {key: {name: values[name] for name in kept} for key, values in all_statistics([episode]).items()}
        lines["episodes_stats"].append({"episode_index": episode, "stats": stats})
    for name, rows in lines.items():
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    for name, make in (("lerobot_v3_tiny", make_v3), ("lerobot_v21_tiny", make_v21)):
        shutil.rmtree(HERE / name, ignore_errors=True)
        make(HERE / name)
