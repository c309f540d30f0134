"""Similar-Sample Guided RL as the README shows it: server, trainer and robot as three processes that talk over HTTP.

    python -m benchmarks.rl_ablation --arms il --seeds 0 --results outputs/rl_ablation     # demonstrations, policy, value model
    python -m benchmarks.rl_http_run

Every seed has a run of its own. The policy that all begin with and every one that a run publishes are measured by `syvla-eval`
on the same starts, which neither demonstrations nor rollouts use. Processes go on where they were stopped, and nothing is
measured twice.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS
from syvla.durable_files import write_json
from syvla.evaluation.success_rate import wilson_interval
from syvla.serving.rl.published_policies import POLICY_FILE
from syvla.training.paper_tables.jobs import Job

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
RECIPES = "training/recipes"
PREPARATION = "python -m benchmarks.rl_ablation --arms il --seeds 0 --results outputs/rl_ablation"
MAX_STEPS = "max_steps=40"
"""Time limit of rollouts and of evaluation, as in `benchmarks.rl_ablation`."""

STARTS = 5
"""Which evaluation starts."""

FIRST_STARTS = 10_000
"""Robots of different runs begin this many starts apart."""

FACTS = {
    "rollout_success": "objective/success_rate",
    "advantage_mean": "objective/advantage_rollout_mean",
    "heldout_loss": "policy/cfm_heldout",
    "stopped_by_kl": "policy/stopped_by_kl",
}
"""What is reported of an update, by the trainer's names."""

SETTINGS = (
    "learning_rate", "lr_scheduler_type", "steps_per_update", "num_value_only_steps", "value_learning_rate", "cliprange_value",
    "cliprange", "expert_cliprange", "expert_ratio", "target_kl", "guard_heldout_cfm", "rollouts_per_update", "max_rl_updates",
    "use_thoughts", "bootstrap_timeouts",
)  # fmt: skip
"""What is reported of the trainer's options; the recipe may have changed since."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        policy: What imitation learning has left.
        value: Its warmed-up value model.
        dataset: Its demonstrations.
        output: Folder of everything else.
        seeds: Of the runs.
        updates, rollouts: Of a run.
        episodes: Of each measurement.
        port: Of the server.
    """

    policy: Path
    value: Path
    dataset: Path
    output: Path
    seeds: tuple[int, ...] = (0, 1)
    updates: int = 4
    rollouts: int = 16
    episodes: int = 200
    port: int = 8000

    def folder(self, seed: int) -> Path:
        return self.output / f"seed{seed}"

    def commands(self, seed: int) -> dict[str, list[str]]:
        """The three processes of a run, by name: what stands behind `python -m`."""
        run = self.folder(seed) / "run"
        serve = {"rl-run": run, "port": self.port, "rl-rollouts": self.rollouts, "rl-updates": self.updates}
        train = {
            "config": f"{RECIPES}/demo_ppo.yaml",
            "model_path": self.policy,
            "value_model_path": self.value,
            "robot_datasets": self.dataset,
            "encoder": f"policy:{self.policy}",
            "output_dir": run,
            "rollouts_per_update": self.rollouts,
            "max_rl_updates": self.updates,
            "seed": seed,
        }
        robot = {"url": f"http://127.0.0.1:{self.port}", "env": "tabletop", "task": "lift", "replan-steps": 4}
        robot |= {"env-option": MAX_STEPS, "seed": FIRST_STARTS * seed, "output": self.folder(seed) / "robot.json"}
        launch = ["accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--cpu"]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "training/ppo.py"]
        return {
            "server": ["syvla.serving.serve_command", *_words(serve)],
            "worker": [*launch, *_words(train)],
            "robot": ["syvla.evaluation.simulated_robot", *_words(robot)],
        }

    def measurement(self, policy: Path, output: Path) -> Job:
        """The closed-loop evaluation of a policy."""
        options = {"model": policy, "task": "lift", "env-option": MAX_STEPS, "episodes": self.episodes}
        options |= {"seed": STARTS, "batch-size": 40, "replan-steps": 4, "video-episodes": 0, "output": output}
        return Job(
            "syvla.evaluation.closed_loop", (*_words(options), "--quiet"), output, "summary.json", keeps_partial=True
        )

    def success(self, policy: Path, output: Path) -> dict[str, int]:
        """Successes and episodes of a policy; measured unless it has been."""
        total = self.measurement(policy, output).run()["summary"]["total"]
        return {"successes": total["successes"], "episodes": total["episodes"]}

    @property
    def before(self) -> dict[str, int]:
        """Of the policy that all runs begin with."""
        return self.success(self.policy, self.output / "before")


def _words(options: dict[str, Any]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def require(plan: Plan) -> None:
    """Raises: FileNotFoundError: If what the runs begin with is not there."""
    for path in (plan.policy, plan.value, plan.dataset):
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; make it with: {PREPARATION}")


def run(plan: Plan, seed: int) -> None:
    """Server, trainer and robot until the run is over.

    Raises:
        RuntimeError: If one of them fails; the others are then ended.
    """
    folder = plan.folder(seed)
    if (folder / "robot.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the tiny models gain nothing from more
    running: dict[str, subprocess.Popen] = {}
    try:
        for name, words in plan.commands(seed).items():
            logger.info("seed %d, %s: python -m %s", seed, name, shlex.join(words))
            with (folder / f"{name}.log").open("a") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
        while any(running[name].poll() is None for name in ("worker", "robot")):
            for name, process in running.items():
                if process.poll() or (name == "server" and process.poll() == 0):
                    raise RuntimeError(f"{name}: ended with exit status {process.poll()}; see {folder / name}.log")
            time.sleep(1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def measure(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """Success of every policy of a run, by version; the same weights under two versions are measured once."""
    found: dict[str, dict[str, Any]] = {}
    versions: list[dict[str, Any]] = []
    for facts in sorted((plan.folder(seed) / "run" / "policies").glob(f"v*/{POLICY_FILE}")):
        policy = json.loads(facts.read_text(encoding="utf-8"))
        key = policy["policy_version"]
        if not found:
            found[key] = plan.before
        if key not in found:
            found[key] = plan.success(facts.parent, plan.folder(seed) / "evaluation" / facts.parent.name)
        versions.append({"version": policy["version"], "policy_version": key, **found[key]})
    return versions


def describe(plan: Plan, seed: int) -> dict[str, Any]:
    """What became of one run."""
    folder = plan.folder(seed)
    history = json.loads((folder / "run" / "rl_history.json").read_text(encoding="utf-8"))
    robot = json.loads((folder / "robot.json").read_text(encoding="utf-8"))
    lines = (folder / "run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["time"] for line in (lines[0], lines[-1])]
    updates = [
        {**{key: entry[key] for key in ("update", "version", "steps", "refused")},
         **{name: entry.get(key) for name, key in FACTS.items()}}
        for entry in history
    ]  # fmt: skip
    versions = measure(plan, seed)
    return {
        "seed": seed,
        "after": versions[-1],
        "versions": versions,
        "updates": updates,
        "robot": {"rollouts": robot["rollouts"], "success_by_version": robot["success"]},
        "seconds": round(times[1] - times[0]),
        "commands": {name: "python -m " + shlex.join(words) for name, words in plan.commands(seed).items()},
    }


def report(plan: Plan, results: Path) -> Path:
    """Writes `rl_http_run.json` and `.md`; returns the JSON's path."""
    runs = [describe(plan, seed) for seed in plan.seeds]
    content = {
        "benchmark": "Similar-Sample Guided RL over HTTP: server, trainer and robot as processes",
        "settings": _settings(plan.folder(plan.seeds[0]) / "run"),
        "prepared_by": PREPARATION,
        "before": _with_interval([plan.before]),
        "after": _with_interval([run["after"] for run in runs]),
        "runs": runs,
    }
    path = results / "rl_http_run.json"
    write_json(path, content, allow_nan=True)
    path.with_suffix(".md").write_text(_table(content), encoding="utf-8")
    return path


def _settings(run: Path) -> dict[str, Any]:
    options = json.loads((run / "training_args.json").read_text(encoding="utf-8"))
    return {name: options.get(name) for name in SETTINGS}


def _with_interval(parts: list[dict[str, Any]]) -> dict[str, Any]:
    successes, episodes = (sum(part[key] for part in parts) for key in ("successes", "episodes"))
    return {"successes": successes, "episodes": episodes, "wilson95": list(wilson_interval(successes, episodes))}


def _table(content: dict[str, Any]) -> str:
    lines = [
        "# Similar-Sample Guided RL over HTTP",
        "",
        "Server, trainer and robot as three processes; each policy measured by `syvla-eval` on starts that neither "
        "demonstrations nor rollouts use, the same for all.",
        "",
        "| policy | success |",
        "|---|---|",
        f"| before | {_rate(content['before'])} |",
        *(f"| after, seed {run['seed']} | {_rate(run['after'])} |" for run in content["runs"]),
        f"| after, all seeds on the same starts | {_rate(content['after'])} |",
    ]
    for run in content["runs"]:
        lines += [
            "",
            f"## Seed {run['seed']}: {run['robot']['rollouts']} rollouts, {run['seconds'] / 60:.0f} minutes",
            "",
        ]
        lines += ["| update | rollouts' success | mean advantage | steps | held-out loss | policy | its success |"]
        lines += ["|---|---|---|---|---|---|---|"]
        measured = {entry["version"]: entry for entry in run["versions"]}
        for entry in run["updates"]:
            outcome = f"v{entry['version']}" if entry["refused"] is None else f"refused ({entry['refused']})"
            steps = f"{entry['steps']}{', stopped by the KL' if entry['stopped_by_kl'] else ''}"
            success = _rate(measured[entry["version"]])
            lines.append(
                f"| {entry['update'] + 1} | {entry['rollout_success']:.2f} | {entry['advantage_mean']:+.2f} | {steps} | "
                f"{entry['heldout_loss']:.4f} | {outcome} | {success} |"
            )
    options = ", ".join(f"{name} {value}" for name, value in content["settings"].items())
    return "\n".join([*lines, "", f"Trained with {options}.", "", "`python -m benchmarks.rl_http_run`", ""])


def _rate(part: dict[str, Any]) -> str:
    low, high = wilson_interval(part["successes"], part["episodes"])
    share = part["successes"] / part["episodes"]
    return f"{part['successes']}/{part['episodes']} = {100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    base = Path("outputs/tables/tiny")
    parser.add_argument("--policy", type=Path, default=base / "flow" / "pretrained", help="what imitation has left")
    parser.add_argument("--value", type=Path, default=Path("outputs/rl_ablation/value"), help="its value model")
    parser.add_argument("--dataset", type=Path, default=base / "data" / "lift", help="its demonstrations")
    parser.add_argument("--output", type=Path, default=Path("outputs/rl_http_run"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and table go")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(Plan.seeds))
    parser.add_argument("--report", action="store_true", help="measure and report the runs that are there")
    for name, text in (
        ("updates", "of each run"),
        ("rollouts", "per update"),
        ("episodes", "of each measurement"),
        ("port", "of the server"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name), help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = vars(build_parser().parse_args(argv))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in (__name__, "syvla.training.paper_tables.jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    results, seeds, only_report = (arguments.pop(name) for name in ("results", "seeds", "report"))
    plan = Plan(**arguments, seeds=tuple(seeds))
    try:
        if not only_report:
            require(plan)
            for seed in plan.seeds:
                run(plan, seed)
        path = report(plan, results)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"rl_http_run: {error}", file=sys.stderr)
        return 1
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
