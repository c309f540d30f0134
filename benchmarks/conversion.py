"""What `syvla-convert` takes per episode, in time and memory: `python -m benchmarks.conversion`.

Every format gets a synthetic source of `--episodes` episodes in its published layout. Measured are episodes per minute with
one process (on a busy machine its seconds of computing say more), the memory of that process in the first and the last
quarter of the episodes, and, with `--finetune`, the loss over 20 steps of a tiny model that is trained on the result. Results
of formats that are not measured stay in the file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, print_table, write_result
from syvla.processing.conversion.formats import open_source
from syvla.processing.conversion.mapping import load_preset
from syvla.processing.conversion.pipeline import convert

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 30
SIZE = (96, 128)
STEPS = 20


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write `benchmarks/results/conversion.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="episodes of each source")
    parser.add_argument("--formats", nargs="*", help="these alone")
    parser.add_argument("--finetune", action="store_true", help=f"train a tiny model for {STEPS} steps on each result")
    arguments = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "tests/support"))
    writers = importlib.import_module("source_files")
    path = RESULTS / "conversion.json"
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats or ("aloha-hdf5", "robomimic", "rlds", "rh20t"):
            result = measure(name, writers, Path(folder) / name, arguments.episodes, arguments.finetune)
            results = json.loads(path.read_text(encoding="utf-8"))["formats"] if path.is_file() else {}
            results = {key: result if key == name else results[key] for key in SOURCES if key in (*results, name)}
            values = {"frames_per_episode": FRAMES, "height_width": SIZE, "video_codec": "h264", "formats": results}
            write_result("conversion", values)
    rows = []
    for name, r in results.items():
        memory = [r["megabytes"][key] for key in ("first_quarter", "last_quarter")]
        rows.append([name, r["episodes"], r["cameras"], r["episodes_per_minute"], r["computing_seconds"], *memory])
    print_table(
        ["format", "episodes", "cameras", "episodes/min", "computing s", "MB first quarter", "last quarter"], rows
    )
    print(f"written to {path}")


def measure(name: str, writers: Any, folder: Path, episodes: int, finetune: bool) -> dict[str, Any]:
    """Time and memory of one format."""
    root, preset = SOURCES[name](writers, folder / "source", episodes)
    mapping = load_preset(preset)
    if mapping.open_questions():
        mapping = replace(mapping, fps=50, task="fold the towel")
    source = _Watched(open_source(name, root, mapping.options))
    started, computing = time.monotonic(), time.process_time()
    report = convert(source, folder / "out", mapping, progress=False, video_codec="h264")
    seconds, computing = time.monotonic() - started, time.process_time() - computing
    assert len(report.converted) == episodes, report.dropped
    quarter = max(episodes // 4, 1)
    result = {
        "episodes": episodes,
        "frames": report.frames,
        "cameras": len(mapping.cameras),
        "seconds": round(seconds, 1),
        "computing_seconds": round(computing, 1),
        "episodes_per_minute": round(60 * episodes / seconds, 1),
        "megabytes": {
            "first_quarter": max(source.megabytes[:quarter]),
            "last_quarter": max(source.megabytes[-quarter:]),
        },
    }
    if finetune:
        result["finetune_losses"] = train(folder, list(mapping.cameras))
    return result


def train(folder: Path, cameras: Sequence[str]) -> list[float]:
    """Losses of 20 steps on the converted dataset."""
    views = dict(zip(("center", "left_wrist", "right_wrist"), cameras, strict=False))
    data = {"path": str(folder / "out"), "embodiment": "robot", "cameras": views}
    commands = [
        ["training.new_checkpoint", "--size", "tiny", "--robot-from", json.dumps(data), "--output", str(folder / "base")],
        [
            "training.finetune", "--model_path", str(folder / "base"), "--robot_datasets", json.dumps(data),
            "--multimodal_share", "0", "--output_dir", str(folder / "run"), "--max_steps", str(STEPS),
            "--logging_steps", "1", "--per_device_train_batch_size", "4", "--save_steps", str(STEPS), "--use_cpu", "true",
        ],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for module, *options in commands:
        subprocess.run([sys.executable, "-m", f"syvla.{module}", *options], check=True, env=environment, cwd=folder)
    state = next(folder.glob("run/**/trainer_state.json"))
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


class _Watched:
    """A source that notes the memory of the process at every episode."""

    def __init__(self, source: Any):
        self._source = source
        self.megabytes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    @contextmanager
    def open(self, reference: Any) -> Iterator[Any]:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                self.megabytes.append(int(line.split()[1]) // 1024)
        with self._source.open(reference) as episode:
            yield episode


def _aloha(writers: Any, root: Path, episodes: int) -> tuple[Path, str]:
    for episode in range(episodes):
        writers.write_aloha(root / f"episode_{episode}.hdf5", episode % 20, FRAMES, compressed=True, size=SIZE)
    return root, "aloha"


def _libero(writers: Any, root: Path, episodes: int) -> tuple[Path, str]:
    for start in range(0, episodes, 50):
        writers.write_libero(root / f"task_{start}_demo.hdf5", (FRAMES,) * min(50, episodes - start), SIZE)
    return root, "libero"


def _rlds(writers: Any, root: Path, episodes: int) -> tuple[Path, str]:
    return writers.write_rlds(root, (FRAMES,) * episodes, SIZE), "oxe_bridge"


def _rh20t(writers: Any, root: Path, episodes: int) -> tuple[Path, str]:
    for episode in range(episodes):
        writers.write_rh20t(root, episode, FRAMES)
    return root, "rh20t_cfg3"


SOURCES: dict[str, Callable[[Any, Path, int], tuple[Path, str]]] = {
    "aloha-hdf5": _aloha,
    "robomimic": _libero,
    "rlds": _rlds,
    "rh20t": _rh20t,
}


if __name__ == "__main__":
    main()
