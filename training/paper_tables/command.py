"""The paper's tables from one command each: `syvla-tables 4 --scale tiny --seeds 0 1 2`.

Trains and measures every policy of a table, one run after the other, prints our column beside the paper's, and writes both
as JSON and markdown. A run whose result is there is not run again; one that was interrupted is.

    syvla-tables 4 --scale tiny --list          # the commands, without running any
    syvla-tables 9 --scale tiny --report        # the table of the runs that are there
    syvla-tables 5 --model-path org/syvla-3b --multimodal-datasets chats.jsonl     # full scale, on GPUs
    syvla-tables 3 --scale tiny --arms rl_similar rl_random    # RL rows; also tables 10 and 11
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from syvla.command_line import CommandParser, error_text
from syvla.durable_files import write_json, write_text
from syvla.evaluation.published_tables import PAPER_TABLES, cells_to_json, markdown_table, paper_table

from .full_scale import FullScale
from .jobs import Job
from .plans import ARMS, PLANS, Plan
from .results import our_cells, success_note
from .scales import Scale
from .tiny_scale import TinyScale

logger = logging.getLogger(__name__)


def jobs_of(plan: Plan, scale: Scale, seeds: Sequence[int], arms: Sequence[str]) -> list[Job]:
    """Every job of a table, each once, in the order in which they run."""
    jobs = [job for measures in plan.all_measures for job in scale.preparation_jobs(arms, measures)] if arms else []
    for seed, measures, arm in product(seeds, plan.all_measures, arms):
        jobs += scale.training(arm, seed, measures)
        for name in (measures, *(["ablation"] if plan.also_success else [])):
            jobs += scale.measure(arm, seed, name).values()
    return list({job.output: job for job in jobs}.values())


def chosen_arms(plan: Plan, names: Sequence[str] | None) -> list[str]:
    """The arms of these names; all of the table's when none are named.

    Raises:
        ValueError: If the table has no such arm; it lists those that it has.
    """
    unknown = [name for name in names or () if name not in plan.arms]
    if unknown:
        raise ValueError(f"--arms: expected any of {', '.join(plan.arms)}, got {', '.join(unknown)}")
    return list(names or plan.arms)


def report(number: str, plan: Plan, scale: Scale, seeds: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """The table of the results that are there, as markdown and as JSON."""
    table = paper_table(number)
    cells, runs = our_cells(table, plan, scale, seeds)
    text = markdown_table(table, cells, scale.label, list(plan.extra_rows))
    done = sorted({run["seed"] for run in runs})
    notes = [
        f"Scale of our column: {scale.label}. Seeds: {', '.join(map(str, done)) or 'none yet'}. "
        "`n seeds [..]` is the 95% Student interval of the mean over seeds, `Wilson [..]` that of all episodes "
        "or answers together. Seeds that came out alike have no interval over seeds.",
        *_measured_by(plan, scale),
        *plan.notes,
        *_rl_note(plan, scale),
        *(success_note(plan, scale, seeds) if plan.also_success else ()),
    ]
    command = " ".join(["syvla-tables", number, "--scale", scale.name, *_seeds(done), *_changed(scale)])
    content = {
        "table": number,
        "title": table.title,
        "scale": scale.label,
        "command": command,
        "seeds": done,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "columns": list(table.columns),
        "paper": {row: list(values) for row, values in table.rows.items()},
        "ours": cells_to_json(cells),
        "runs": runs,
        "notes": notes,
    }
    lines = [f"- {note}" for note in notes] + [f"- Command: `{command}`, on {content['hardware']}."]
    return text + "\n" + "\n".join(lines) + "\n", content


def _seeds(seeds: Sequence[int]) -> list[str]:
    return ["--seeds", *map(str, seeds)] if seeds else []


def _changed(scale: Scale) -> list[str]:
    """Numbers of the command line that are not the defaults; paths stay with their machine."""
    fields = type(scale).__dataclass_fields__.values()
    values = [(field.name, getattr(scale, field.name), field.default) for field in fields]
    changed = [(name, value) for name, value, default in values if isinstance(value, int) and value != default]
    return [word for name, value in changed for word in ("--" + name.replace("_", "-"), str(value))]


def _measured_by(plan: Plan, scale: Scale) -> list[str]:
    """Sentences below a table about how our measurement differs from the paper's; none if it does not."""
    if plan.measures == "ablation":
        tiny = "`lift` with a second object on the table, of which only the instruction tells the right one"
        where = tiny if scale.name == "tiny" else "`calculating`"
        return [
            f"The paper folds a shirt with a real robot; ours is {where}, in the tabletop simulator. Policies are trained with "
            "thoughts and think before every action chunk, where the arm does not say otherwise."
        ]
    if plan.measures == "benchmarks" and scale.name == "tiny":
        return [
            "Our columns are synthetic stand-ins in the benchmarks' schemas and scoring, not the benchmarks themselves: "
            "drawn shapes and digits, of which a tiny model can learn something."
        ]
    return []


def _rl_note(plan: Plan, scale: Scale) -> list[str]:
    """A sentence about the budget of RL; none for a table without an arm that uses RL."""
    if not any(ARMS[arm].rl is not None for arm in plan.arms):
        return []
    updates, rollouts = scale.budget
    steps = f", {scale.rl_steps} steps each" if scale.rl_steps else ""
    return [
        f"RL: {updates} updates of {rollouts} rollouts (the paper: at most 10 of 20){steps}, by `syvla-rl`: policy server, a "
        f"simulated robot with the environment's success as reward, and trainer as processes. {scale.rl_differs}"
    ]


def run_table(number: str, scale: Scale, seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Runs what is missing of a table.

    Raises:
        ValueError: If something is missing that the user has to bring, or the table cannot run at this scale.
        RuntimeError: If a job fails.
    """
    plan = PLANS[number]
    if problems := needs(plan, scale, arms):
        raise ValueError("\n- ".join([f"table {number} at {scale.name} scale needs:", *problems]))
    jobs = jobs_of(plan, scale, seeds, arms)
    for index, job in enumerate(jobs, 1):
        logger.info("job %d/%d: %s", index, len(jobs), job.output)
        job.run()


def needs(plan: Plan, scale: Scale, arms: Sequence[str]) -> list[str]:
    """What the user has to bring before the arms can run."""
    return list(dict.fromkeys(need for measures in plan.all_measures for need in scale.problems(arms, measures)))


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-tables`."""
    parser = CommandParser(
        prog="syvla-tables",
        description="Train, measure and print one table of the paper, ours beside the paper's.",
        example="syvla-tables 4 --scale tiny",
    )
    parser.add_argument("table", help=f"number of the table: {', '.join(PAPER_TABLES)}")
    parser.add_argument("--scale", default="full", choices=("tiny", "full"), help="tiny runs on a CPU")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: 0; 0 to 4 for table 6)")
    parser.add_argument("--arms", nargs="+", help="only these policies of the table; by default all")
    parser.add_argument("--output", type=Path, default=Path("outputs/tables"), help="folder of everything")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--report", action="store_true", help="print the table of what is there and run nothing")
    parser.add_argument("--train-steps", type=int, help="steps of each run; by default the recipe's")
    parser.add_argument("--episodes", type=int, help="evaluation episodes per task; by default the scale's own")
    parser.add_argument("--demonstrations", type=int, help="recorded per task; by default the scale's own")
    rl = parser.add_argument_group("reinforcement learning (tables 3, 10 and 11)")
    rl.add_argument("--rl-updates", type=int, help="updates of each run; by default the scale's own")
    rl.add_argument("--rl-rollouts", type=int, help="rollouts of each update; by default the scale's own")
    rl.add_argument("--rl-steps", type=int, help="steps of each update; by default the recipe's")
    rl.add_argument("--rollout-steps", type=int, help="control steps of a rollout; by default the environment's")
    rl.add_argument("--value-steps", type=int, help="steps of the value model's warm-up; by default the recipe's")
    tiny = parser.add_argument_group("tiny scale")
    tiny.add_argument("--base-steps", type=int, help="steps of the base; by default the recipe's")
    tiny.add_argument("--chats", type=int, default=TinyScale.chats, help="chats of the multi-modal data")
    tiny.add_argument("--rows", type=int, default=TinyScale.rows, help="rows of each synthetic benchmark")
    full = parser.add_argument_group("full scale")
    full.add_argument("--model-path", help="pretrained SyVLA that every run starts from")
    full.add_argument("--regression-model-path", help="the same for the L1 regression baseline")
    full.add_argument("--multimodal-datasets", nargs="+", default=[], help="chats to mix in")
    full.add_argument("--libero-datasets", nargs="+", default=[], help="LIBERO's demonstrations (table 8)")
    full.add_argument("--data-root", help="folder of the VLM benchmarks; by default the Hub")
    full.add_argument("--workers", type=int, default=FullScale.workers, help="processes that simulate the episodes")
    full.add_argument("--accelerate-config", default=FullScale.accelerate_config, help="of accelerate launch")
    return parser


def make_scale(arguments: argparse.Namespace) -> Scale:
    """The scale that the command line describes."""
    kind = TinyScale if arguments.scale == "tiny" else FullScale
    names = [name for name in kind.__dataclass_fields__ if hasattr(arguments, name)]
    return kind(**{name: getattr(arguments, name) for name in names})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-tables`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in (
        "syvla.training.paper_tables.command",
        "syvla.training.paper_tables.jobs",
        "syvla.training.rl_run",
        "syvla.training.processes.child_processes",
    ):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        paper_table(arguments.table)
        plan, scale = PLANS[arguments.table], make_scale(arguments)
        seeds = arguments.seeds or (range(5) if arguments.table == "6" else (0,))
        arms = chosen_arms(plan, arguments.arms)
        if arguments.list:
            print(f"# Table {arguments.table}, {scale.label}")
            for need in needs(plan, scale, arms):
                print(f"# needs {need}")
            for job in jobs_of(plan, scale, seeds, arms):
                print(job.shell())
            for row, reason in plan.not_run.items():
                print(f"# {row}: {reason}")
            return 0
        if not arguments.report:
            run_table(arguments.table, scale, seeds, arms)
        text, content = report(arguments.table, plan, scale, seeds)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(error_text("syvla-tables", error), file=sys.stderr)
        return 1
    folder = arguments.output / scale.name
    write_json(folder / f"table_{arguments.table}.json", content, allow_nan=True)
    write_text(folder / f"table_{arguments.table}.md", text)
    print(text)
    print(f"written to {folder / f'table_{arguments.table}.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
