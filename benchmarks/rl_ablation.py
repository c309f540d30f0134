"""What each part of Similar-Sample Guided RL is worth, in simulation: `python -m benchmarks.rl_ablation`.

One policy of imitation learning with a success rate between 40 and 80% on the tabletop's `lift` (the base of
`syvla-tables --scale tiny`, by `training/finetune.py`; shared with it through `--tables`). From it, every arm takes the same
number of gradient steps through the shipped `syvla.training.ppo`, with rollouts of its own made in this process
(`benchmarks.rl_robot`). Seed s trains with seed s and is measured on evaluation starts of its own, the same for all arms,
which neither demonstrations nor rollouts use.

Every step writes its result when it is done and is not run again. `--quick` takes minutes and shows nothing but that it runs.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS
from benchmarks.rl_ablation_plan import Plan
from benchmarks.rl_ablation_report import write_report
from benchmarks.rl_ablation_run import ARMS

logger = logging.getLogger(__name__)

IL_RANGE = (0.4, 0.8)
"""Success of imitation learning that leaves room above and below."""

QUICK: dict[str, Any] = {
    "seeds": (0,),
    "value_steps": 20,
    "run": {"updates": 1, "rollouts": 4, "steps": 4, "episodes": 4, "curve_episodes": 0},
    "base": {"base_steps": 100, "chats": 200},
    "check": False,
}


def prepare(plan: Plan) -> None:
    """Makes what is missing of what all runs share.

    Raises:
        ValueError: If imitation learning is too good or too bad for the arms to differ.
        RuntimeError: If a step fails.
    """
    for job in plan.preparation():
        result = job.run()
    if plan.check and not IL_RANGE[0] <= result["summary"]["success"] <= IL_RANGE[1]:
        raise ValueError(
            f"imitation learning: expected a success rate of {IL_RANGE[0]} to {IL_RANGE[1]}, got "
            f"{result['summary']['success']:.2f}; train the base for more or fewer steps (--base-steps) in another --tables "
            "folder"
        )


def run_all(plan: Plan, processes: int) -> None:
    """Runs what is missing, `processes` at a time.

    Raises:
        RuntimeError: If a run fails; those that were going on are finished.
    """
    missing = {key: job for key, job in plan.runs().items() if job.result is None}
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


def _announce(key: tuple[str, int], result: dict[str, Any]) -> None:
    logger.info("%s, seed %d: success %.2f in %.0f s", *key, result["summary"]["success"], result["seconds"])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="minutes; too short to learn anything")
    parser.add_argument("--output", type=Path, default=Path("outputs/rl_ablation"))
    parser.add_argument("--tables", type=Path, help="folder of syvla-tables (default: outputs/tables; quick: own)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON, table and figure go")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
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
    """The plan that the command line describes."""
    fields: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    given = {name: value for name in RUN_OPTIONS if (value := getattr(arguments, name)) is not None}
    fields["run"] = {**fields.get("run", {}), **given}
    if arguments.seeds:
        fields["seeds"] = tuple(arguments.seeds)
    if arguments.base_steps is not None:
        fields["base"] = {**fields.get("base", {}), "base_steps": arguments.base_steps}
    output = arguments.output / "quick" if arguments.quick else arguments.output
    tables = arguments.tables or (output / "tables" if arguments.quick else Path("outputs/tables"))
    return Plan(output=output, tables=tables, arms=tuple(arguments.arms), **fields)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    import torch

    torch.set_num_threads(1)
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in (__name__, "syvla.training.paper_tables.jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    plan = make_plan(arguments)
    try:
        if not arguments.report:
            prepare(plan)
            run_all(plan, arguments.processes)
        path = write_report(plan, arguments.results, "rl_ablation_quick" if arguments.quick else "rl_ablation")
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"rl_ablation: {error}", file=sys.stderr)
        return 1
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
