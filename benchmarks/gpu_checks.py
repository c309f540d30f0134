"""All that a GPU can show, in one command: `scripts/gpu_checks.sh`, or `python -m benchmarks.gpu_checks [--rehearse]`.

Every check is a process with a limit of its own, and those that follow run whatever became of it. The table says of each how
it ended; figures are in `benchmarks/results/` beside those of the CPU, what was printed is in `outputs/gpu_checks/`.
`--rehearse` takes the same path on a CPU with small models, and leaves `benchmarks/results/` as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.reporting import RESULTS_VARIABLE, print_table, write_section

LOGS = Path("outputs/gpu_checks")


@dataclass(frozen=True)
class Check:
    """A command that shows something of a GPU.

    Attributes:
        name: Name of the check and of its log.
        module: Python module that runs.
        arguments: Its arguments on a GPU.
        rehearsal: Its arguments in a rehearsal.
        seconds: When it is stopped on a GPU. All together are below nine minutes.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    rehearsal: tuple[str, ...]
    seconds: int


_LATENCY = ("--device", "cuda", "--dtype", "bfloat16", "--rounds", "1", "--repeats", "10", "--fresh")
_SMALL = ("--device", "cpu", "--scale", "small", "--calls", "action", "--rounds", "1", "--repeats", "1", "--fresh")

CHECKS = (
    Check("parity", "benchmarks.device_parity", ("--device", "cuda"), ("--device", "cpu", "--width", "8"), 60),
    Check("bound", "benchmarks.machine_bound", ("--device", "cuda"), ("--device", "cpu", "--repeats", "1"), 40),
    Check("latency", "benchmarks.latency", _LATENCY, _SMALL, 100),
    Check("latency compiled", "benchmarks.latency", (*_LATENCY, "--compile"), _SMALL, 130),
    Check(
        "memory",
        "benchmarks.memory",
        ("--device", "cuda", "--ways", "full", "LoRA", "--batch-sizes", "1"),
        ("--device", "cpu", "--width", "4", "--depth", "6", "--ways", "full", "LoRA", "--batch-sizes", "1"),
        90,
    ),
    Check(
        "engines", "benchmarks.engines", ("--one-device",), ("--one-device", "--steps", "4", "--batch_size", "2"), 90
    ),
    Check("tests", "pytest", ("-q", "-rs", "-m", "gpu", "tests/gpu"), ("-q", "-rs", "tests/gpu"), 50),
)


def run(check: Check, rehearse: bool) -> dict[str, float | str]:
    """How a check ended: `ended` is "ok", "stopped after ... s" or "status ..."."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{check.name.replace(' ', '_')}.txt"
    command = [sys.executable, "-m", check.module, *(check.rehearsal if rehearse else check.arguments)]
    environment = {**os.environ, **({RESULTS_VARIABLE: str(LOGS / "results")} if rehearse else {})}
    limit = None if rehearse else check.seconds  # how long a CPU takes is no matter
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=limit)
            ended = "ok" if done.returncode == 0 else f"status {done.returncode}, see {log}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {check.seconds} s, see {log}"
    return {"ended": ended, "seconds": time.perf_counter() - start}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="the same on a CPU with small models")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], metavar="CHECK", help="names")
    options = parser.parse_args(argv)
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("gpu_checks: torch sees no CUDA device; --rehearse runs the same checks on a CPU")
    results = {}
    for check in CHECKS:
        if options.only is None or check.name in options.only:
            results[check.name] = run(check, options.rehearse)
            print(f"{check.name}: {results[check.name]['ended']}", flush=True)
    print_table(["check", "s", "ended"], [[name, r["seconds"], r["ended"]] for name, r in results.items()])
    if not options.rehearse:
        from benchmarks.machine_bound import describe_device, device_name

        print(write_section("gpu_checks", device_name("cuda"), {"checks": results}, describe_device("cuda")))
    else:
        (LOGS / "rehearsal.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if any(result["ended"] != "ok" for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
