"""Memory and throughput of each engine on CPU processes: `python -m benchmarks.engines`.

Trains a model of about 40 million weights, in float32, for a few steps of the same global batch: in one process, and in two
under DDP, DeepSpeed ZeRO-2 and FSDP2. Prints the samples per second, the largest resident memory of a process beyond what its
imports take, and the largest difference of the losses from those of one process. On CPUs, whose processes share cores and
memory bandwidth, throughput says what an engine adds, not what it gains.

`--one-device` runs every engine in one process and demands the losses of the first: on a GPU by `accelerate launch` with the
files of `training/accelerate_configs/`, bfloat16 included; without one as above. Nothing is sharded there, yet wrapping, mixed
precision, gathering and saving are those of eight GPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reader import record
from benchmarks.reporting import print_table, write_result
from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import build_tiny_processor
from syvla.training.cpu_engines import CONFIGS, ENGINES, launch_command

LOSS_TOLERANCE = 0.05
"""Relative; ours. bfloat16 rounds in another order under each engine, while a wrong wrapping changes far more."""


def config() -> SyVLAConfig:
    """The tiny model with wider and more layers, so that weights outweigh activations."""
    vlm = SyVLAConfig.tiny().vlm_config.to_dict()
    vlm["text_config"].pop("layer_types", None)
    vlm["text_config"].update(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    )
    vlm["vision_config"].update(out_hidden_size=512)
    expert = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "head_dim": 64}
    return SyVLAConfig.tiny(embodiments={}, vlm_config=vlm, expert_config=expert)


def run(engine: str, processes: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains under an engine; returns its figures and losses."""
    output = folder / f"{engine}-{processes}"
    arguments: dict[str, Any] = {
        "model_path": folder / "base",
        "robot_datasets": json.dumps({"path": str(folder / "robot"), "embodiment": "robot"}),
        "multimodal_share": 0.0,
        "output_dir": output,
        "max_steps": options.steps,
        "warmup_steps": 1,
        "per_device_train_batch_size": options.batch_size // processes,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    words = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    if torch.cuda.is_available() and options.one_device:
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
        launch += ["--num_processes", "1", "-m", "syvla.training.finetune"]
        command = [sys.executable, *launch, *words, "--bf16", "true"]
    else:
        command = launch_command(engine, processes, "finetune", words, report=output / "memory")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{engine}: {done.stderr[-2000:]}")
    log = [e for e in json.loads((output / "log_history.json").read_text()) if "loss" in e]
    memory = [json.loads(path.read_text()) for path in (output / "memory").glob("process_*.json")]
    return {
        "engine": engine if processes > 1 or options.one_device else "one process",
        "processes": processes,
        "samples_per_second": statistics.median(e["speed/samples_per_second"] for e in log[2:]),
        "peak_mib": max((m["peak_mib"] - m["before_mib"] for m in memory), default=0.0),
        "losses": [e["loss"] for e in log],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=16, help="global batch size")
    parser.add_argument(
        "--one-device", action="store_true", help="each engine in one process, on the GPU if there is one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record(folder / "robot", 32, False, 3, 20)
        torch.manual_seed(0)
        model = SyVLAModel(config())
        model.save_pretrained(folder / "base")
        build_tiny_processor(model.config).save_pretrained(folder / "base")
        count = model.num_parameters()
        del model
        runs = [run("ddp", 1, folder, options)]
        for engine in ENGINES[1:] if options.one_device else ENGINES:
            if engine == "zero2" and importlib.util.find_spec("deepspeed") is None:
                print("zero2: DeepSpeed is not installed, not run")
                continue
            runs.append(run(engine, 1 if options.one_device else 2, folder, options))
    for figures in runs:
        pairs = zip(figures["losses"], runs[0]["losses"], strict=True)
        figures["loss_difference"] = max(abs(a - b) / b for a, b in pairs)
    rows = [
        [
            r["engine"],
            r["processes"],
            round(r["samples_per_second"], 1),
            round(r["peak_mib"]),
            f"{r['loss_difference']:.0e}",
        ]
        for r in runs
    ]
    on_gpu = options.one_device and torch.cuda.is_available()
    dtype = "bfloat16 autocast" if on_gpu else "float32"
    print(f"{count / 1e6:.1f} M weights, batch {options.batch_size}, {dtype}")
    print_table(["engine", "processes", "samples /s", "MiB per process", "loss difference"], rows)
    settings = {"parameters": count, "batch_size": options.batch_size, "steps": options.steps, "dtype": dtype}
    name = "engines_one_device" + ("_cuda" if on_gpu else "") if options.one_device else "engines"
    print(write_result(name, {"settings": settings, "runs": runs}))
    apart = [r["engine"] for r in runs if options.one_device and r["loss_difference"] > LOSS_TOLERANCE]
    if apart:
        raise SystemExit(
            f"{', '.join(apart)}: losses differ from those of one process by more than {LOSS_TOLERANCE:.0%}"
        )


if __name__ == "__main__":
    main()
