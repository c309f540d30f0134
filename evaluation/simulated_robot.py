"""A simulated robot with an automatic rewarder, for runs of reinforcement learning (`syvla-rl-robot`).

It stands where a robot and a person stand: runs a task of an environment with the policy of `syvla-serve --rl-run`, sends
every observation, and labels each rollout by the environment's own success signal. Imports no torch.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from syvla.serving.client.retries import ClientOptions, PolicyError, Unreachable
from syvla.serving.client.rl_client import EpisodeAborted, RLClient, RunComplete

from .command_line import ENVIRONMENT_HELP, environment_name, environment_option
from .environments import make_environment
from .environments.base import EVALUATION_SEED_OFFSET, Observation, RobotEnvironment
from .episode_slot import call_seed

logger = logging.getLogger("syvla.evaluation.simulated_robot")

ROLLOUT_SEED_OFFSET = EVALUATION_SEED_OFFSET // 2
"""First environment seed of rollouts: beyond those of demonstrations, below those of evaluation, so that no policy is
measured on a start that it trained on."""


@dataclass
class RobotOptions:
    """How the robot works.

    Attributes:
        replan_steps: Actions executed of each chunk; None: all.
        think: Whether the policy thinks before each chunk.
        label: Whether the rewarder labels rollouts; else they wait for a person.
        wait_s: Seconds to wait until an episode may begin.
    """

    replan_steps: int | None = None
    think: bool = False
    label: bool = True
    wait_s: float = 3600.0


def run_episode(client: RLClient, environment: RobotEnvironment, seed: int, options: RobotOptions) -> dict[str, Any]:
    """Runs one episode to success, failure or the time limit.

    Args:
        client: Of the server.
        environment: The task.
        seed: Of the environment and of the policy's noise.
        options: See there.

    Returns:
        `episode_id`, `version`, `seed`, `success`, `steps`.

    Raises:
        EpisodeAborted: The server gave the episode up.
        RunComplete: No more rollouts are wanted.
    """
    begun = client.begin(options.wait_s)
    observation, info = environment.reset(seed=seed)
    steps, calls, executed, over = 0, 0, None, False
    timed_out = False
    while not over:
        reply = client.act(
            _views(environment, observation),
            observation["state"],
            str(info["instruction"]),
            embodiment=environment.embodiment,
            seed=call_seed(seed, calls),
            think=options.think,
            executed_steps=executed,
        )
        chunk = np.asarray(reply["actions"])
        executed, calls = 0, calls + 1
        for action in chunk[: options.replan_steps]:
            observation, _, terminated, truncated, info = environment.step(action)
            executed, steps = executed + 1, steps + 1
            over = bool(terminated or truncated or info["success"])
            timed_out = bool(truncated and not terminated and not info["success"])
            last = over or executed == len(chunk[: options.replan_steps])
            if executed < len(chunk) and (over or not last):  # the next request brings the observation after a chunk
                client.observe(
                    _views(environment, observation),
                    observation["state"],
                    str(info["instruction"]),
                    embodiment=environment.embodiment,
                )
            if over:
                break
    client.end(executed, timed_out=timed_out)
    success = bool(info["success"])
    if options.label:
        client.reward(int(success))
    return {
        "episode_id": begun["episode_id"],
        "version": begun["version"],
        "seed": seed,
        "success": success,
        "steps": steps,
    }


def run_robot(
    client: RLClient, environment: RobotEnvironment, episodes: int | None, first_seed: int, options: RobotOptions
) -> list[dict[str, Any]]:
    """Runs episodes until there are enough of them or the run is complete; those that are aborted do not count.

    Args:
        client: Of the server.
        environment: The task.
        episodes: How many; None: as many as the run wants.
        first_seed: Seed of the first one, see `ROLLOUT_SEED_OFFSET`; each attempt takes the next.
        options: See there.
    """
    done: list[dict[str, Any]] = []
    seed = first_seed
    while episodes is None or len(done) < episodes:
        try:
            record = run_episode(client, environment, seed, options)
        except EpisodeAborted as error:
            logger.warning("stopped: %s", error)
        except RunComplete as error:
            logger.info("%s", error)
            break
        else:
            done.append(record)
            logger.info("policy %d: %s", record["version"], "success" if record["success"] else "failure")
        seed += 1
    return done


def success_by_version(records: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Policy version to [successes, rollouts]."""
    counts: dict[str, list[int]] = {}
    for record in records:
        entry = counts.setdefault(str(record["version"]), [0, 0])
        entry[0] += int(record["success"])
        entry[1] += 1
    return counts


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-rl-robot`."""
    parser = argparse.ArgumentParser(
        prog="syvla-rl-robot",
        description="A simulated robot that makes rollouts for syvla-serve --rl-run and labels them by the simulator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--token-file", type=Path, help="file with the server's token")
    parser.add_argument("--env", default="tabletop", type=environment_name, help=ENVIRONMENT_HELP)
    parser.add_argument("--task", default="lift", help="task of the environment")
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        type=environment_option,
        metavar="KEY=VALUE",
        help="of the environment",
    )
    parser.add_argument("--episodes", type=int, help="rollouts to make; by default as many as the run wants")
    parser.add_argument("--seed", type=int, default=0, help="number of the first start; give every robot its own range")
    parser.add_argument("--replan-steps", type=int, help="actions executed of each chunk; by default all")
    parser.add_argument("--think", action="store_true", help="think before each chunk")
    parser.add_argument("--no-label", action="store_true", help="leave the labels to a person, at /rl")
    parser.add_argument("--wait-s", type=float, default=3600.0, help="wait so long until an episode may begin")
    parser.add_argument("--output", type=Path, help="JSON file of what became of each rollout")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-rl-robot`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = RobotOptions(arguments.replan_steps, arguments.think, not arguments.no_label, arguments.wait_s)
    try:
        if not 0 <= arguments.seed < ROLLOUT_SEED_OFFSET:
            raise ValueError(f"seed: expected 0 to {ROLLOUT_SEED_OFFSET - 1}, got {arguments.seed}")
        if arguments.replan_steps is not None and arguments.replan_steps < 1:
            raise ValueError(f"replan_steps: expected at least 1, got {arguments.replan_steps}")
        token = None if arguments.token_file is None else arguments.token_file.read_text().strip()
        client = RLClient(arguments.url, token, ClientOptions(retries=20))
        with closing(make_environment(arguments.env, arguments.task, **dict(arguments.env_option))) as environment:
            first = ROLLOUT_SEED_OFFSET + arguments.seed
            records = run_robot(client, environment, arguments.episodes, first, options)
        result = {"rollouts": len(records), "success": success_by_version(records), "episodes": records}
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, ImportError, PolicyError, Unreachable) as error:
        print(f"syvla-rl-robot: {error}", file=sys.stderr)
        return 1
    print(json.dumps({key: result[key] for key in ("rollouts", "success")}))
    return 0


def _views(environment: RobotEnvironment, observation: Observation) -> dict[str, np.ndarray]:
    return {view: observation["images"][camera] for view, camera in environment.view_cameras.items()}


if __name__ == "__main__":
    sys.exit(main())
