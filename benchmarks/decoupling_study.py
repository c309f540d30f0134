"""Does Intention Decoupling help, and when? `python -m benchmarks.decoupling_study`.

Trains tiny policies on `calculating`, `bagging` and `place_named`, in which only the thought, or the instruction, tells what
to take, and compares arms (`decoupling_study_plan.ARMS`): thoughts {on, off} x decoupling {on, off}, a random state masked, the
strongest masked, quantile 0.2, noise in place of a mask, 5 and 20 query tokens. Arms of one seed share initial weights,
samples, noise, number of steps and starts.

The language model is pretrained on a few texts alone (`decoupling_study_base`) and reads what lies on the table; the expert
gets it as numbers in place of pictures (`decoupling_study_scenes`): the question is what the query states carry from thought
to action, at a scale at which many seeds can be afforded.

    python -m benchmarks.decoupling_study --smoke        # every part in about a minute; nothing is learned
    python -m benchmarks.decoupling_study --tune --arms weakest --seeds 1 --set train_steps=500
    python -m benchmarks.decoupling_study                # what is reported: needs a frozen, committed recipe
    python -m benchmarks.decoupling_study --report       # tables and figures from the JSON alone
    python -m benchmarks.decoupling_study --reproduce weakest 0

Started again, a study goes on with the runs that are missing, whatever moment it was killed at. Tuning and smoke use other
training seeds, episodes and starts than what is reported. Raw outcomes of every episode, the recipe and its commit go into
`benchmarks/results/decoupling_study.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.decoupling_study_base import prepare_base
from benchmarks.decoupling_study_plan import ARMS, PHASES, RECIPE, SMOKE, Recipe, frozen_commit, runs
from benchmarks.decoupling_study_report import load, remake, save
from benchmarks.decoupling_study_run import demonstrations, finished, run, run_into
from benchmarks.reporting import RESULTS


def run_missing(
    recipe: Recipe, phase: str, wanted: Sequence[tuple[str, int]], folder: Path, facts: dict[str, Any], processes: int
) -> None:
    """Runs what is not done, `processes` at a time, one thread each.

    Raises:
        Exception: What a run failed with; those that were going on are finished.
    """
    missing = [key for key in wanted if finished(folder, recipe, *key) is None]
    if not missing:
        return
    demonstrations(recipe, PHASES[phase], folder)  # before there are two who would record them
    if processes == 1:
        for arm, seed in missing:
            _announce(run_into(recipe, phase, arm, seed, folder, facts))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    context = multiprocessing.get_context("spawn")  # a forked copy of one that runs torch may hang
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        seeds = sorted({PHASES[phase].training + seed for _, seed in missing})
        list(pool.map(prepare_base, repeat(recipe), seeds, repeat(folder)))  # each once, for all arms
        futures = [pool.submit(run_into, recipe, phase, arm, seed, folder, facts) for arm, seed in missing]
        try:
            for future in as_completed(futures):
                _announce(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _announce(result: dict[str, Any]) -> None:
    rates = [result[split]["outcomes"].count("s") / len(result[split]["outcomes"]) for split in ("in_domain", "ood")]
    cpu = ", ".join(f"{name} {value:.0f}" for name, value in result["cpu_seconds"].items())
    print(
        f"{result['arm']}, seed {result['seed']}: in domain {rates[0]:.3f}, out of distribution {rates[1]:.3f}; "
        f"processor seconds: {cpu}",
        flush=True,
    )


def collect(recipe: Recipe, phase: str, folder: Path, path: Path, facts: dict[str, Any]) -> None:
    """Writes the JSON out of all runs that are done."""
    done = [found for key in runs(recipe) if (found := finished(folder, recipe, *key)) is not None]
    if phase == "reported" and (strangers := [r for r in done if r.get("recipe_commit") != facts["recipe_commit"]]):
        raise ValueError(
            f"{folder}: {len(strangers)} runs were made when the recipe's last commit was another one; name another --output"
        )
    save(path, {"phase": phase, "recipe": dataclasses.asdict(recipe), **facts, "arms": _arms()}, done)


def _arms() -> dict[str, Any]:
    return {name: dataclasses.asdict(arm) for name, arm in ARMS.items()}


def machine() -> dict[str, str]:
    """What outcomes may depend on besides the recipe."""
    import mujoco
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "mujoco": mujoco.__version__}
    return {**versions, "python": platform.python_version(), "processor": platform.processor() or platform.machine()}


def reproduce(recipe: Recipe, phase: str, arm: str, seed: int, folder: Path) -> bool:
    """Runs once more what is done; whether everything but the times is the same."""
    before = finished(folder, recipe, arm, seed)
    if before is None:
        raise FileNotFoundError(f"{arm}, seed {seed}: there is no outcome in {folder} to compare with; run it first")
    again = json.loads(json.dumps(run(recipe, phase, arm, seed, folder)))
    different = [name for name in again if name not in ("cpu_seconds", "seconds") and again[name] != before[name]]
    print(f"{arm}, seed {seed}: " + (f"differs in {', '.join(different)}" if different else "the same outcomes"))
    return not different


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--smoke", action="store_true", help="every part, at a size at which nothing is learned")
    mode.add_argument("--tune", action="store_true", help="the recipe on seeds that are never reported")
    parser.add_argument("--report", action="store_true", help="run nothing; tables and figures from the JSON")
    parser.add_argument("--reproduce", nargs=2, metavar=("ARM", "SEED"), help="run once more, and compare")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=JSON", help="change the recipe; only with --tune"
    )
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, help="only so many seeds; only with --tune or --smoke")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("outputs/decoupling_study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and figures go")
    return parser


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the command line describes.

    Raises:
        ValueError: An option has no meaning for what is reported, or a change is malformed.
    """
    changes: dict[str, Any] = dict(SMOKE) if arguments.smoke else {}
    if not (arguments.tune or arguments.smoke) and (arguments.set or arguments.seeds is not None):
        raise ValueError("--set and --seeds: what is reported follows the committed recipe; use them with --tune")
    if arguments.smoke and arguments.set:
        raise ValueError("--set: has no effect with --smoke; use --tune")
    for entry in arguments.set:
        name, sign, value = entry.partition("=")
        if not sign:
            raise ValueError(f"--set: expected FIELD=JSON, got {entry!r}")
        changes[name] = json.loads(value)
    if arguments.seeds is not None:
        changes |= {"seeds": arguments.seeds, "further_seeds": arguments.seeds}
    return Recipe.load(RECIPE, changes)


def study(arguments: argparse.Namespace) -> int:
    """Does what the command line says; returns the exit status."""
    recipe = recipe_of(arguments)
    phase = "tuning" if arguments.tune or arguments.smoke else "reported"
    kind = "smoke" if arguments.smoke else phase
    folder = arguments.output / (f"{kind}_{recipe.digest}" if kind == "tuning" else kind)
    name = "decoupling_study" if kind == "reported" else f"decoupling_study_{kind}"
    path = (arguments.results if kind == "reported" else folder) / f"{name}.json"
    if arguments.reproduce:
        arm, seed = arguments.reproduce
        if arm not in ARMS or not seed.isdecimal():
            raise ValueError(f"--reproduce: expected an arm out of {list(ARMS)} and a number, got {arm!r} {seed!r}")
        return 0 if reproduce(recipe, phase, arm, int(seed), folder) else 1
    if not arguments.report:
        facts: dict[str, Any] = {"machine": machine()}
        if kind == "reported":
            facts["recipe_commit"] = frozen_commit(recipe)
        run_missing(recipe, phase, runs(recipe, arguments.arms), folder, facts, arguments.processes)
        collect(recipe, phase, folder, path, facts)
    print(f"{len(load(path)['runs'])} runs of {len(runs(recipe))}, {kind}")
    remake(path)
    print(f"written to {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return study(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"decoupling_study: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
