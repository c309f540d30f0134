"""`make demo` with several seeds: `python -m benchmarks.demo_seeds`.

Runs the whole demo once for each seed, as its own command: demonstrations, a tiny SyVLA from random weights, training, and the
evaluation before and after. A seed changes all of them, the starts of the evaluation too, so that the spread between seeds is
what another run of the demo may bring. Two runs go side by side, each with one thread.

Raw outcomes of every episode are in `benchmarks/results/demo_seeds.json`, which each run is added to as it ends. Started again
the command goes on with the seeds that are missing. `--table` prints the table of that file alone.

Wilson's interval covers the draw of the episodes, Student's over seeds another run as well. Wall time depends on what else the
machine does: `load` is its load average at the start and at the end of a run. Seconds of processors depend on it far less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks.reporting import RESULTS, print_table
from syvla.durable_files import write_text
from syvla.evaluation.published_tables import mean_and_interval
from syvla.evaluation.success_rate import SuccessRate
from syvla.training.hub.model_card import RUN_FILE

COMMAND = "python -m benchmarks.demo_seeds"
WHEN = ("before", "after")


def load_runs(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
    return runs


def save_runs(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """One line for each run, by threads and seed."""
    lines = ",\n".join(json.dumps(run) for run in sorted(runs, key=lambda run: (run["threads"], run["seed"])))
    summaries = json.dumps({str(threads): summary(runs, threads) for threads in sorted({r["threads"] for r in runs})})
    write_text(
        path, f'{{"command": {json.dumps(COMMAND)},\n"summary_by_threads": {summaries},\n"runs": [\n{lines}\n]}}\n'
    )


def summary(runs: Sequence[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Success over the seeds of one number of threads: successes per seed, their mean and its interval, Wilson's of all."""
    own = [run for run in sorted(runs, key=lambda run: int(run["seed"])) if run["threads"] == threads]
    found: dict[str, Any] = {"seeds": [run["seed"] for run in own]}
    for when in WHEN:
        rates = [SuccessRate.of(episode["success"] for episode in run[when]) for run in own]
        together = SuccessRate(sum(rate.successes for rate in rates), sum(rate.episodes for rate in rates))
        mean, interval = mean_and_interval([rate.rate for rate in rates])
        found[when] = {
            "successes_by_seed": [rate.successes for rate in rates],
            "successes": together.successes,
            "episodes": together.episodes,
            "wilson95": list(together.interval),
            "mean": mean,
            "student95": None if interval is None else [max(0.0, interval[0]), min(1.0, interval[1])],
        }
    for name in ("seconds", "processor_seconds"):
        found[f"{name}_by_seed"] = [round(_total(run, name)) for run in own]
    return found


def run_demo(seed: int, threads: int, output: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the demo in a process of its own; returns its outcomes.

    Raises:
        RuntimeError: If it fails; its messages are in a file beside its folder.
    """
    folder, log = output / f"seed_{seed}_threads_{threads}", output / f"seed_{seed}_threads_{threads}.log"
    output.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[:1]
    command = [sys.executable, "-m", "syvla.training.demo", "--seed", str(seed), "--threads", str(threads)]
    command += ["--video-episodes", "0", "--output", str(folder), *extra]
    with log.open("w", encoding="utf-8") as messages:
        status = subprocess.run(command, stdout=messages, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise RuntimeError(f"the demo of seed {seed} ended with exit status {status}; its messages are in {log}")
    return {**outcome_of(folder), "load": [round(value, 2) for value in (*load, os.getloadavg()[0])]}


def outcome_of(folder: Path) -> dict[str, Any]:
    """What is kept of a demo, from the files in its folder."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    trained = json.loads((folder / "checkpoint" / RUN_FILE).read_text(encoding="utf-8"))
    config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    return {
        **{name: report["settings"][name] for name in ("seed", "threads", "task")},
        "demonstrations": report["demonstrations"],
        "train_steps": trained["step"],
        "batch_size": trained["arguments"]["per_device_train_batch_size"],
        "parameters": report["parameters"],
        **{name: config[name] for name in ("chunk_end", "flow_solver", "num_inference_steps")},
        "augmentation": trained["augmentation"],
        "replan_steps": report["settings"]["replan_steps"],
        "thinks": report["settings"]["think"],
        "seconds_by_stage": report["seconds_by_stage"],
        "processor_seconds_by_stage": report["processor_seconds_by_stage"],
        "machine": {**report["machine"], "processor": _processor()},
        **{when: _outcomes(folder / f"evaluation_{when}" / "episodes.jsonl") for when in WHEN},
    }


def _outcomes(path: Path) -> list[dict[str, Any]]:
    episodes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = ("seed", "success", "steps", "instruction")
    return sorted(
        ({key: episode[key] for key in kept} for episode in episodes), key=lambda episode: int(episode["seed"])
    )


def _processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


HEADER = ["threads", "seed", "before", "after", "seconds", "of processors", "training", "load"]


def table(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row per run, and one for all seeds of a number of threads."""
    rows = []
    for threads in sorted({run["threads"] for run in runs}):
        own = [run for run in runs if run["threads"] == threads]
        for run in sorted(own, key=lambda run: int(run["seed"])):
            rates = [str(SuccessRate.of(episode["success"] for episode in run[when])) for when in WHEN]
            seconds = [_total(run, name) for name in ("seconds", "processor_seconds")]
            training = run["processor_seconds_by_stage"]["training"]
            numbers = [f"{value:.0f}" for value in (*seconds, training)]
            rows.append([str(threads), str(run["seed"]), *rates, *numbers, " to ".join(map(str, run["load"]))])
        found = summary(runs, threads)
        if len(own) > 1:
            whole = [str(SuccessRate(found[when]["successes"], found[when]["episodes"])) for when in WHEN]
            rows.append([str(threads), "all", whole[0], f"{whole[1]}{_student(found['after'])}", "", "", "", ""])
    return rows


def _total(run: dict[str, Any], name: str) -> float:
    """Of all stages; `sum` rounds differently from Python 3.12 on."""
    return math.fsum(run[f"{name}_by_stage"].values())


def _student(found: dict[str, Any]) -> str:
    """Mean and interval over seeds; empty where all seeds came out alike."""
    if found["student95"] is None:
        return ""
    low, high = (100 * bound for bound in found["student95"])
    return f"; over seeds {100 * found['mean']:.1f}% [{low:.1f}, {high:.1f}]"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/demo_seeds"), help="folder of the demos' own files"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "demo_seeds.json")
    parser.add_argument("--quick", action="store_true", help="the demo's --quick; give it --results of its own")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args(argv)
    if options.quick and options.results == RESULTS / "demo_seeds.json":
        parser.error("--quick: its outcomes do not belong into the committed file; name another one with --results")
    known = {(run["seed"], run["threads"]) for run in load_runs(options.results)}
    missing = [] if options.table else [s for s in dict.fromkeys(options.seeds) if (s, options.threads) not in known]
    writing = Lock()

    def measure(seed: int) -> None:
        run = run_demo(seed, options.threads, options.output, ["--quick"] if options.quick else [])
        with writing:
            save_runs(options.results, [*load_runs(options.results), run])

    with ThreadPoolExecutor(max(1, options.processes)) as pool:
        failures = [f.exception() for f in [pool.submit(measure, seed) for seed in missing]]
    print_table(HEADER, table(load_runs(options.results)))
    for failure in filter(None, failures):
        print(f"demo_seeds: {failure}", file=sys.stderr)
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
