"""Time and memory of loading a checkpoint of several gigabytes: `python -m benchmarks.loading`.

Writes a sharded checkpoint of the paper's size with random weights (bfloat16, 8.9 GB; `--scale small` for a minute's run)
into a temporary folder and loads it in processes of their own, in turns:

- SyVLA: `AutoModel.from_pretrained` on the folder.
- Qwen2.5-VL: `transformers`' own class on the same files, of which it reads the VLM's part.

Time is compared per byte loaded, once until `from_pretrained` returns and once until every weight has been read, since a
memory-mapped one is not before it is used. Memory is what the process holds at most (anonymous and mapped pages, sampled
every 2 ms) beyond what it held before, in units of the bytes loaded: 1 is the model itself, 2 would be a second copy.

Beside it: `import syvla` against importing what loads the bare VLM, and loading config and processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reporting import print_table, write_section

GOAL = 1.1
"""Seconds per byte, ours to theirs."""

IMPORTS = {
    "import syvla": "import syvla.modeling_syvla",
    "import of the bare VLM": "from transformers import AutoModel, Qwen2_5_VLForConditionalGeneration",
}


def resident_bytes() -> tuple[int, int]:
    """(anonymous, file-backed) memory of this process."""
    fields = {}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.split()
    anonymous, file, shared = (int(fields[name][0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem"))
    return anonymous, file + shared


class PeakMemory:
    """Highest resident memory while inside, above what it was on entry, in bytes: `total` and `anonymous` alone."""

    def __enter__(self) -> PeakMemory:
        self._before = resident_bytes()
        self.total = self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._sample()

    def _sample(self) -> None:
        now = resident_bytes()
        self.anonymous = max(self.anonymous, now[0] - self._before[0])
        self.total = max(self.total, sum(now) - sum(self._before))


def make_checkpoint(folder: Path, scale: str, shard: str) -> None:
    """Weights of one random block, and a processor with a small vocabulary."""
    import torch

    from benchmarks.latency_models import random_model, syvla_config
    from syvla.modeling_syvla import SyVLAModel
    from syvla.processing import build_tiny_processor

    config = syvla_config(scale)
    model = random_model(lambda: SyVLAModel(config), torch.bfloat16, "cpu", pool_bytes=None)
    model.save_pretrained(folder, max_shard_size=shard)
    build_tiny_processor(config).save_pretrained(folder)


def load_syvla(folder: Path) -> Any:
    from transformers import AutoModel

    import syvla  # noqa: F401  registers the Auto classes

    return AutoModel.from_pretrained(folder, dtype="auto")


def load_vlm(folder: Path) -> Any:
    """The VLM's weights out of the same files; the others are left alone."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from syvla.modeling_syvla import SyVLAConfig

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder,
        config=SyVLAConfig.from_pretrained(folder).vlm_config,
        key_mapping={r"^vlm\.": ""},
        dtype="auto",
    )


LOADERS: dict[str, Callable[[Path], Any]] = {"SyVLA": load_syvla, "Qwen2.5-VL": load_vlm}


def measure_loading(name: str, folder: Path) -> dict[str, Any]:
    """Load once, in this process, after what the load imports is imported."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, logging

    import syvla

    logging.set_verbosity_error()  # the VLM alone reports the expert's weights as unexpected
    # Code that is loaded when it is first used; both need it.
    with torch.device("meta"):
        model = syvla.SyVLAModel(syvla.SyVLAConfig.from_pretrained(folder))
    assert isinstance(model.vlm, Qwen2_5_VLForConditionalGeneration)
    del model
    with PeakMemory() as peak:
        start = time.perf_counter()
        model = LOADERS[name](folder)
        loaded = time.perf_counter() - start
        checksum = sum(int(p.view(-1).view(torch.int16).sum(dtype=torch.int64)) for p in model.parameters())
        read = time.perf_counter() - start
    return {
        "seconds": loaded,
        "seconds_until_read": read,
        "bytes": sum(p.nbytes for p in model.parameters()),
        "peak_bytes": peak.total,
        "peak_anonymous_bytes": peak.anonymous,
        "checksum": checksum,
    }


def measure_small(name: str, folder: Path) -> dict[str, Any]:
    """An import in a fresh process; config or processor with the imports done."""
    if name in IMPORTS:
        start = time.perf_counter()
        exec_import(IMPORTS[name])
        return {"seconds": time.perf_counter() - start}
    from transformers import AutoConfig, AutoProcessor

    import syvla  # noqa: F401  registers the Auto classes

    start = time.perf_counter()
    (AutoConfig if name == "config" else AutoProcessor).from_pretrained(folder)
    return {"seconds": time.perf_counter() - start}


def exec_import(statement: str) -> None:
    """`import a` or `from a import b, c`, without evaluating text."""
    from importlib import import_module

    words = statement.replace(",", " ").split()
    module = import_module(words[1])
    for name in words[3:]:
        getattr(module, name)


def fill_file_cache(folder: Path) -> None:
    """Read the weights once, so that no load waits for the disk."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def run_child(step: str, folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.loading", "--step", step, "--folder", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{step}: the measuring process ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summarize(runs: dict[str, list[dict[str, Any]]], small: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and our seconds per byte over theirs."""
    loads = {}
    for name, values in runs.items():
        row = {key: median(run[key] for run in values) for key in values[0] if key != "checksum"}
        row["peak_of_bytes"] = row["peak_bytes"] / row["bytes"]
        row["gbytes_per_second"] = row["bytes"] / row["seconds"] / 1e9
        loads[name] = row
    ours, theirs = loads["SyVLA"], loads["Qwen2.5-VL"]
    imports = [median(small[name]) for name in IMPORTS]
    return {
        "ratio_per_byte": (ours["seconds"] / ours["bytes"]) / (theirs["seconds"] / theirs["bytes"]),
        "ratio_per_byte_until_read": (ours["seconds_until_read"] / ours["bytes"])
        / (theirs["seconds_until_read"] / theirs["bytes"]),
        "peak_of_bytes": ours["peak_of_bytes"],
        "peak_of_bytes_bare_vlm": theirs["peak_of_bytes"],
        "ratio_import": imports[0] / imports[1],
        "goal_ratio_per_byte": GOAL,
        "loads": loads,
        "seconds": {name: median(values) for name, values in small.items()},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("paper", "small", "tiny"), default="paper")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shard", default="2GB", help="largest shard")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is made and stays; default: temporary")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step == "make":
        make_checkpoint(options.folder, options.scale, options.shard)
        print("{}")
        return
    if options.step:
        measure = measure_loading if options.step in LOADERS else measure_small
        print(json.dumps(measure(options.step, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "config.json").is_file():
            run_child("make", folder, "--scale", options.scale, "--shard", options.shard)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LOADERS}
        small: dict[str, list[float]] = {name: [] for name in (*IMPORTS, "config", "processor")}
        fill_file_cache(folder)
        for _ in range(options.repeats):
            for name in LOADERS:
                runs[name].append(run_child(name, folder))
            for name in small:
                small[name].append(run_child(name, folder)["seconds"])
        shards = len(list(folder.glob("*.safetensors")))
    report(summarize(runs, small), options.scale, shards)


def report(result: dict[str, Any], scale: str, shards: int) -> None:
    from benchmarks.machine_bound import describe_device, device_name

    rows = [
        [name, row["bytes"] / 1e9, row["seconds"], row["seconds_until_read"], row["peak_of_bytes"]]
        for name, row in result["loads"].items()
    ]
    print_table(["loading", "GB", "s", "s until read", "peak memory / weights"], rows)
    print_table(["beside it", "s"], [[name, seconds] for name, seconds in result["seconds"].items()])
    print(
        f"seconds per byte, ours / theirs: {result['ratio_per_byte']:.3f}, until read "
        f"{result['ratio_per_byte_until_read']:.3f} (goal: at most {GOAL}); import {result['ratio_import']:.3f}"
    )
    name = "loading" if scale == "paper" else f"loading_{scale}"
    result = {**result, "settings": {"scale": scale, "shards": shards, "dtype": "bfloat16"}}
    print(write_section(name, device_name(), result, describe_device()))


if __name__ == "__main__":
    main()
