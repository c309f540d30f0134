"""What each part of Similar-Sample Guided RL is worth, in simulation: `python -m benchmarks.rl_ablation`.

One policy of imitation learning that leaves room above and below. From it, every arm takes the same number of gradient steps
through the shipped `syvla.training.ppo`, with rollouts of its own made in this process (`benchmarks.rl_robot`). Seed s trains
with seed s. All arms are measured on the same starts, which neither demonstrations nor rollouts use.

`--design lift` (the base of `syvla-tables --scale tiny`, shared with it through `--tables`) is what the committed figures were
measured with. `--design unseen` and `unseen_thoughts` are the experiment that decides, see `rl_ablation_plan.DESIGNS`:

    python -m benchmarks.rl_ablation --design unseen --smoke                  # every arm in minutes; nothing is learned
    python -m benchmarks.rl_ablation --design unseen --tune                   # learning rates, on seeds that are not reported
    python -m benchmarks.rl_ablation --design unseen --learning-rate 1e-4     # what is reported, over many sittings
    python -m benchmarks.rl_ablation --design unseen --learning-rate 1e-4 --report

Every step writes its result when it is done and is not run again.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.reporting import RESULTS
from benchmarks.rl_ablation_plan import DESIGNS, TUNING_RUN, TUNING_SEEDS, Plan
from benchmarks.rl_ablation_report import write_report
from benchmarks.rl_ablation_run import ARMS
from syvla.durable_files import write_json
from syvla.evaluation.closed_loop_result import describe_machine
from syvla.training.paper_tables.jobs import Job

logger = logging.getLogger(__name__)

SMOKE: dict[str, Any] = {
    "seeds": (0,),
    "value_steps": 20,
    "run": {
        "updates": 1, "rollouts": 3, "steps": 2, "batch": 4, "flow_samples": 1, "episodes": 3, "curve_episodes": 0,
        "max_steps": 12, "takeover_after": 4, "learning_rate": 1e-4, "logging_steps": 1,
    },
    "demonstrations": 8,
    "check": False,
}  # fmt: skip
SMOKE_BASE: dict[str, dict[str, Any]] = {
    "lift": {"base_steps": 20, "chats": 40, "rows": 4, "demonstrations": 20},
    "unseen": {"max_steps": 4, "warmup_steps": 1, "per_device_train_batch_size": 4},
}
"""Changes that make every part run in minutes; nothing is learned."""


def prepare(plan: Plan) -> None:
    """Makes what is missing of what all runs share.

    Raises:
        ValueError: If imitation learning is too good or too bad for the arms to differ.
        RuntimeError: If a step fails.
    """
    for job in plan.preparation():
        result = job.run()
    low, high = plan.design.il_range
    if plan.check and not low <= result["summary"]["success"] <= high:
        raise ValueError(
            f"imitation learning: expected a success rate of {low} to {high}, got "
            f"{result['summary']['success']:.2f}; train the base for more or fewer steps (--base-steps) in another --tables "
            "or --output folder"
        )


def run_all(jobs: Mapping[Any, Job], processes: int) -> None:
    """Runs what is missing, `processes` at a time.

    Raises:
        RuntimeError: If a run fails; those that were going on are finished.
    """
    missing = {key: job for key, job in jobs.items() if job.result is None}
    if processes == 1:
        for key, job in missing.items():
            _announce(key, job.run())
    if processes == 1 or not missing:
        return
    # New processes: a forked copy of one that runs torch may hang. Each takes one run after the other.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = {pool.submit(job.run): key for key, job in missing.items()}
        try:
            for future in as_completed(futures):
                _announce(futures[future], future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _announce(key: tuple[Any, ...], result: dict[str, Any]) -> None:
    name = ", ".join(map(str, key))
    logger.info("%s: success %.3f in %.0f s", name, result["summary"]["success"], result["seconds"])


def tune(plan: Plan, processes: int, folder: Path) -> Path:
    """Compares learning rates on seeds and starts that are not reported; returns the JSON that says what was found.

    The chosen one has the highest mean success over the arms of the primary contrasts.
    """
    jobs = plan.tuning()
    run_all(jobs, processes)
    found: dict[str, dict[str, list[float]]] = {}
    for (rate, arm, _), job in jobs.items():
        summary = (job.result or {})["summary"]
        found.setdefault(f"{rate:g}", {}).setdefault(arm, []).append(summary["success"])
    means = {rate: fmean(fmean(own) for own in arms.values()) for rate, arms in found.items()}
    chosen = float(max(means, key=lambda rate: means[rate]))
    path = folder / f"{plan.design.results}_tuning.json"
    content = {"success": found, "mean": means, "chosen_learning_rate": chosen, "machine": describe_machine()}
    write_json(path, {"seeds": list(TUNING_SEEDS), "evaluation_run": TUNING_RUN, **content})
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--design", choices=tuple(DESIGNS), default="lift", help="what is measured")
    parser.add_argument("--smoke", "--quick", action="store_true", help="minutes; too short to learn anything")
    parser.add_argument("--tune", action="store_true", help="compare learning rates, and report none of it")
    parser.add_argument("--output", type=Path, help="default: outputs/ and the name of the design's results")
    parser.add_argument("--tables", type=Path, help="folder of syvla-tables (default: outputs/tables; smoke: own)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON, table and figure go")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), help="default: the design's")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--base-steps", type=int, help="steps of the base, instead of its recipe's")
    parser.add_argument("--report", action="store_true", help="report what is there and run nothing")
    for name, kind in RUN_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="see benchmarks.rl_ablation_run --help")
    return parser


RUN_OPTIONS = {
    **dict.fromkeys(("updates", "rollouts", "steps", "episodes", "curve_episodes", "value_only_steps"), int),
    **dict.fromkeys(("learning_rate", "cliprange", "guard"), float),
}
"""Options that are passed on to the runs."""


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The plan that the command line describes.

    Raises:
        ValueError: A design whose learning rate has to be chosen beforehand got none.
    """
    design = DESIGNS[arguments.design]
    fields: dict[str, Any] = dict(SMOKE) if arguments.smoke else {}
    if arguments.smoke:
        fields["base"] = SMOKE_BASE["unseen" if design.recordings else "lift"]
    given = {name: value for name in RUN_OPTIONS if (value := getattr(arguments, name)) is not None}
    if design.recordings and not (arguments.smoke or arguments.tune or "learning_rate" in given):
        raise ValueError(
            f"--learning-rate: expected the one that --design {design.name} --tune chose; it has no default, since the choice "
            "must not see what is reported"
        )
    fields["run"] = {**fields.get("run", {}), **given}
    if arguments.seeds:
        fields["seeds"] = tuple(arguments.seeds)
    if set(fields.get("seeds", ())) & set(TUNING_SEEDS) and design.recordings:
        raise ValueError(f"--seeds: {TUNING_SEEDS} are for --tune; what a learning rate is chosen by is not reported")
    if arguments.base_steps is not None:
        name = "max_steps" if design.recordings else "base_steps"
        fields["base"] = {**fields.get("base", {}), name: arguments.base_steps}
    output = arguments.output or Path("outputs") / design.results
    output = output / "smoke" if arguments.smoke else output
    tables = arguments.tables or (output / "tables" if arguments.smoke else Path("outputs/tables"))
    return Plan(output=output, tables=tables, arms=tuple(arguments.arms or ()), design=design, **fields)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import torch

    torch.set_num_threads(1)
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in (__name__, "syvla.training.paper_tables.jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        plan = make_plan(arguments)
        if not arguments.report:
            prepare(plan)
        if arguments.tune:
            print(f"written to {tune(plan, arguments.processes, arguments.results)}")
            return 0
        if not arguments.report:
            run_all(plan.runs(), arguments.processes)
        path = write_report(plan, arguments.results, f"{plan.design.results}{'_smoke' if arguments.smoke else ''}")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"rl_ablation: {error}", file=sys.stderr)
        return 1
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
