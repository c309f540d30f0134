"""A whole run of reinforcement learning in simulation by one command: server, simulated robots and trainer together.

    syvla-rl --env tabletop --task lift --replan-steps 4 --think --output_dir outputs/rl --model_path outputs/my_task \
        --value_model_path outputs/my_value --robot_datasets path/to/demonstrations --encoder policy:outputs/my_task

Starts `syvla-serve --rl-run`, `syvla-rl-robot` with the environment's own rewards, and `training/ppo.py`, and ends the others
when the trainer is done. All options but those of `syvla-rl --help` are the trainer's. When one process dies, the rest is
stopped and the end of its log is shown; the same command goes on where any of this was cut short.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__" and not __package__:  # started by its path
    from checkout import require_package

    require_package(__file__)

from syvla.command_line import CommandParser, error_text
from syvla.evaluation.simulated_robot import ROLLOUT_SEED_OFFSET
from syvla.evaluation.simulated_robot import build_parser as robot_parser
from syvla.serving.client.http_client import http_ready
from syvla.serving.client.rl_client import RLClient
from syvla.serving.rl.ledger import AWAITING, CONSUMED, LEDGER_FILE, Ledger
from syvla.training.processes.child_processes import Child, ChildProcesses, ProcessDied

logger = logging.getLogger("syvla.training.rl_run")

SEEDS_PER_ROBOT = 10_000
"""Starts set apart for each robot of a run."""

POLL_S = 0.2
FAREWELL_S = 20.0
"""Seconds within which robots learn that the run is complete and end by themselves."""


@dataclass(frozen=True)
class RLRun:
    """What is run.

    Attributes:
        output: The trainer's `output_dir`: checkpoints, policies, rollouts, journal, and logs in `logs/`.
        trainer: Command line of `training/ppo.py`.
        updates, rollouts, seed: Of the trainer.
        env, task, env_options: What the robots do; options as `KEY=VALUE`.
        robots: How many robots run at the same time.
        replan_steps: Actions executed of each chunk; None: all.
        think: Whether the policy thinks before each chunk.
        max_new_tokens: Longest thought; None: the model's.
        port: The server's; 0: a free one.
        server_device, server_dtype: Of the policy that acts.
        accelerate_config: File of `accelerate launch`, for a trainer of several processes; None: one process.
    """

    output: Path
    trainer: tuple[str, ...]
    updates: int
    rollouts: int
    seed: int
    env: str = "tabletop"
    task: str = "lift"
    env_options: tuple[str, ...] = ()
    robots: int = 1
    replan_steps: int | None = None
    think: bool = False
    max_new_tokens: int | None = None
    port: int = 0
    server_device: str | None = None
    server_dtype: str = "auto"
    accelerate_config: Path | None = None

    def server_command(self, port: int) -> list[str]:
        """Command of the Scheduler."""
        return [
            *_module("syvla.serving.serve_command"),
            *("--rl-run", str(self.output), "--port", str(port)),
            *("--rl-rollouts", str(self.rollouts), "--rl-updates", str(self.updates)),
            *("--think", "on" if self.think else "off", "--dtype", self.server_dtype),
            *_option("--max-new-tokens", self.max_new_tokens),
            *_option("--device", self.server_device),
        ]

    def robot_command(self, number: int, url: str) -> list[str]:
        """Command of one robot; every start of the run, also after a restart, is another one."""
        owner = (self.seed * self.robots + number) % (ROLLOUT_SEED_OFFSET // SEEDS_PER_ROBOT)
        seed = owner * SEEDS_PER_ROBOT + begun_episodes(self.output) % SEEDS_PER_ROBOT
        return [
            *_module("syvla.evaluation.simulated_robot"),
            *("--url", url, "--env", self.env, "--task", self.task, "--seed", str(seed)),
            *(word for option in self.env_options for word in ("--env-option", option)),
            *_option("--replan-steps", self.replan_steps),
            *(["--think"] if self.think else []),
            *("--wait-s", "1e9"),  # an update may take hours; a server or trainer that dies ends the run
        ]

    def trainer_command(self) -> list[str]:
        """Command of the Workers."""
        if self.accelerate_config is None:
            return [*_module("syvla.training.ppo"), *self.trainer]
        launch = _module("accelerate.commands.launch")
        return [
            *launch,
            "--config_file",
            str(self.accelerate_config),
            str(Path(__file__).with_name("ppo.py")),
            *self.trainer,
        ]


def run_rl(run: RLRun) -> dict[str, Any]:
    """Runs until the trainer is done. Returns what became of it, which is also written to `summary.json`.

    Raises:
        ProcessDied: A process ended before its time; with the end of its log. The others have been stopped.
        ValueError: Another command works on this run.
    """
    port = run.port or free_port()
    url = f"http://127.0.0.1:{port}"
    with ChildProcesses(run.output / "logs") as children:
        server = children.start("server", run.server_command(port))
        trainer = children.start("trainer", run.trainer_command())
        robots: list[Child] = []
        while trainer.running:
            if not server.running:
                raise ProcessDied(server.report())
            for robot in robots:
                if not (robot.running or robot.succeeded):
                    raise ProcessDied(robot.report())
            if not robots and http_ready(url):
                logger.info("policy served at %s; status page: %s/rl", url, url)
                discard_unlabeled(url, run.output)
                for number in range(run.robots):
                    robots.append(children.start(f"robot{number}", run.robot_command(number, url)))
            time.sleep(POLL_S)
        if not trainer.succeeded:
            raise ProcessDied(trainer.report())
        until = time.monotonic() + FAREWELL_S
        while any(robot.running for robot in robots) and time.monotonic() < until:
            time.sleep(POLL_S)
    summary = summarize(run.output)
    (run.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def discard_unlabeled(url: str, output: Path) -> None:
    """Takes rollouts out of a run whose robot died before it labeled them, when no robot works on it yet.

    Only that robot's simulator knew the outcome. The server would wait for their labels and begin no others in their place,
    and the trainer with it.

    Args:
        url: Of the server, which is ready.
        output: Folder of the run.
    """
    client = RLClient(url)
    for name in Ledger(output).read().names(AWAITING):
        client.discard(name, "its robot ended before it labeled the rollout")
        logger.warning("rollout %s: discarded, since its robot ended before it labeled it; /rl can restore it", name)


def summarize(output: Path) -> dict[str, Any]:
    """What a finished run did: number of updates and rollouts, and of each update what it took and whether it counted."""
    kept = ("update", "version", "steps", "refused")
    history = json.loads((output / "rl_history.json").read_text(encoding="utf-8"))
    known = Ledger(output).read()
    return {
        "updates": known.updates,
        "version": max((entry["version"] for entry in history), default=0),
        "rollouts": len(known.names(CONSUMED)),
        "history": [
            {**{key: entry[key] for key in kept}, "rollout_success": entry["objective/success_rate"]}
            for entry in history
        ],
    }


def begun_episodes(output: Path) -> int:
    """Episodes that robots have begun in this run so far."""
    journal = output / LEDGER_FILE
    return journal.read_bytes().count(b'"event": "begin"') if journal.is_file() else 0


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [name, str(value)]


def build_parser() -> CommandParser:
    """Options of `syvla-rl` that are not the trainer's."""
    parser = CommandParser(
        prog="syvla-rl",
        description="Reinforcement learning in simulation by one command: server, robots and trainer together.",
        epilog="All other options are those of the trainer, training/ppo.py: see syvla-ppo --help.",
        allow_abbrev=False,
        example="syvla-rl --config training/recipes/ppo.yaml --model_path outputs/my_task --output_dir outputs/rl",
    )
    environments = next(action.choices for action in robot_parser()._actions if action.dest == "env")
    parser.add_argument("--env", default=RLRun.env, choices=environments, help="environment")
    parser.add_argument("--task", default=RLRun.task, help="task of the environment")
    parser.add_argument("--env-option", action="append", default=[], metavar="KEY=VALUE", help="of the environment")
    parser.add_argument("--robots", type=int, default=RLRun.robots, help="robots that run at the same time")
    parser.add_argument("--replan-steps", type=int, help="actions executed of each chunk; by default all")
    parser.add_argument("--think", action="store_true", help="think before each chunk")
    parser.add_argument("--max-new-tokens", type=int, help="longest thought in tokens; by default the model's")
    parser.add_argument("--port", type=int, default=RLRun.port, help="of the server; 0: a free one")
    parser.add_argument(
        "--server-device", help="torch device of the policy that acts; by default a GPU where there is one"
    )
    parser.add_argument("--server-dtype", default=RLRun.server_dtype, help="its dtype, such as bfloat16")
    parser.add_argument(
        "--accelerate-config",
        help="file of accelerate launch, for a trainer of several processes; by default one process",
    )
    parser.arrange(
        {
            "environment": ["--env", "--task", "--env-option"],
            "robots": ["--robots", "--replan-steps", "--think", "--max-new-tokens"],
            "server and trainer": ["--port", "--server-device", "--server-dtype", "--accelerate-config"],
        }
    )
    return parser


def parse_run(argv: Sequence[str] | None = None) -> RLRun:
    """The run that a command line describes; the trainer's options are checked here already.

    Raises:
        ValueError: As `syvla.training.run.recipe.parse_recipe`, or if a number is out of its range.
    """
    from syvla.training.ppo import RLDataArguments
    from syvla.training.rl.config import SyVLAPPOConfig
    from syvla.training.run.arguments import ModelArguments
    from syvla.training.run.recipe import recipe_parser, shipped_path

    own, words = build_parser().parse_known_args(argv)
    parser, rest = recipe_parser((ModelArguments, RLDataArguments, SyVLAPPOConfig), words, __doc__, prog="syvla-rl")
    trainer = parser.parse_args(rest)
    if not trainer.output_dir:
        raise ValueError("output_dir: expected the folder of the run, got none")
    if own.robots < 1:
        raise ValueError(f"robots: expected at least 1, got {own.robots}")
    if own.replan_steps is not None and trainer.decision_steps is None:  # decisions of experts as long as the robot's
        words += ["--decision_steps", str(own.replan_steps)]
    options = vars(own)
    config = options.pop("accelerate_config")
    return RLRun(
        output=Path(trainer.output_dir),
        trainer=tuple(words),
        updates=trainer.max_rl_updates,
        rollouts=trainer.rollouts_per_update,
        seed=trainer.seed,
        env_options=tuple(options.pop("env_option")),
        accelerate_config=None if config is None else shipped_path(config),
        **options,
    )


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does, so that what was started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may choose
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-rl`; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("syvla.training.rl_run", "syvla.training.processes.child_processes"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        run = parse_run(argv)
        with interrupted_by_sigterm():
            summary = run_rl(run)
    except (ValueError, OSError, ImportError, ProcessDied) as error:
        print(error_text("syvla-rl: error", error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        command = shlex.join(["syvla-rl", *(sys.argv[1:] if argv is None else argv)])
        print(f"syvla-rl: stopped; this goes on with it: {command}", file=sys.stderr)
        return 130
    print(
        json.dumps({"checkpoint": str(run.output), **{key: summary[key] for key in ("updates", "version", "rollouts")}})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
