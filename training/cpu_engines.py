"""Trains under one of the engines of `accelerate_configs/` on several CPU processes, to check a run without GPUs.

    python -m syvla.training.cpu_engines --engine fsdp2 --processes 2 --script finetune -- --model_path ... --output_dir ...

The engine is set up from its file there. `accelerate` itself offers FSDP and DeepSpeed on accelerators only; here it is told
that the processes are such ones, and wraps, shards and gathers as it does there, through gloo.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

ENGINES = ("ddp", "zero2", "fsdp2")
CONFIGS = Path(__file__).with_name("accelerate_configs")
SETTINGS = '{"use_configured_state": true}'
"""Value of `--accelerator_config` that makes `TrainingArguments` keep the engine set up here."""


def launch_command(
    engine: str, processes: int, script: str, arguments: Sequence[str], report: Path | None = None
) -> list[str]:
    """Command line that runs `training/<script>.py` under an engine; see `write_report` for `report`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    worker = ["-m", "syvla.training.cpu_engines", "--worker", "--engine", engine, "--script", script]
    worker += ["--"] if report is None else ["--report", str(report), "--"]
    return [*launch, *worker, *map(str, arguments), "--use_cpu", "true", "--accelerator_config", SETTINGS]


def set_up_engine(engine: str) -> None:
    """Make this process, one of those that torchrun started, a process of the engine."""
    import yaml

    if engine == "zero2":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{engine}.yaml").read_text(encoding="utf-8"))
    state = PartialState(cpu=True, backend="gloo")
    if engine == "fsdp2":
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        for name, value in config["fsdp_config"].items():
            os.environ[name.upper()] = str(value).lower() if isinstance(value, bool) else str(value)
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if engine == "zero2":
        import deepspeed

        options = config["deepspeed_config"]
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(options["zero_stage"])
        os.environ["ACCELERATE_GRADIENT_CLIPPING"] = str(options["gradient_clipping"])
        os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = options["offload_optimizer_device"]
        os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] = options["offload_param_device"]
        # Its shared-memory kernels would be compiled now, for minutes; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo")
        state._shared_state["distributed_type"] = DistributedType.DEEPSPEED


def write_report(folder: Path, before: int) -> None:
    """Write `process_N.json`: largest resident memory of this process so far, and what it was before, in MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    memory = {"before_mib": before / 2**10, "peak_mib": _peak_kib() / 2**10}
    path = folder / f"process_{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(memory) + "\n", encoding="utf-8")


def _peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status of the training script."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.training.cpu_engines", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--engine", choices=ENGINES, default="ddp")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--script", choices=("finetune", "pretrain"), default="pretrain")
    parser.add_argument("--report", type=Path, help="folder in which every process leaves how much memory it took")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help="arguments of the script, after --")
    options = parser.parse_args(argv)
    if options.worker:
        set_up_engine(options.engine)
        script = importlib.import_module(f"syvla.training.{options.script}")
        before = _peak_kib()
        status: int = script.main(options.arguments)
        if options.report is not None:
            write_report(options.report, before)
        return status
    command = launch_command(options.engine, options.processes, options.script, options.arguments, options.report)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
