"""Several processes of one training job on a machine without GPUs."""

from __future__ import annotations


def launch(processes: int) -> list[str]:
    """What stands between `python -m` and the script: `accelerate launch`, whose processes then talk through gloo.

    With `--cpu` it would start a single process.
    """
    several = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--main_process_port", "0"]
    return ["accelerate.commands.launch", *several, "--mixed_precision", "no", "--dynamo_backend", "no"]
