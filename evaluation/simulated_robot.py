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

from syvla.command_line import CommandParser, error_text
from syvla.serving.client.retries import ClientOptions, PolicyError, Unreachable
from syvla.serving.client.rl_client import EpisodeAborted, RLClient, RunComplete

from .command_line import ENVIRONMENT_HELP, environment_name, environment_option
from .environments import make_environment, make_expert
from .environments.base import EVALUATION_SEED_OFFSET, RobotEnvironment, ScriptedExpert
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
        takeover_after: Control steps after which the environment's scripted expert takes over, as a person does who sees that
            the policy fails; None: never. The environment's time limit must leave the expert time to finish.
    """

    replan_steps: int | None = None
    think: bool = False
    label: bool = True
    wait_s: float = 3600.0
    takeover_after: int | None = None


def run_episode(client: RLClient, environment: RobotEnvironment, seed: int, options: RobotOptions) -> dict[str, Any]:
    """Runs one episode to success, failure or the time limit.

    Args:
        client: Of the server.
        environment: The task.
        seed: Of the environment and of the policy's noise.
        options: See there.

    Returns:
        `episode_id`, `version`, `seed`, `success` of the policy alone, `finished` by whoever acted, `steps`, and `takeover`:
        the control step at which the expert took over, None if it did not.

    Raises:
        EpisodeAborted: The server gave the episode up.
        RunComplete: No more rollouts are wanted.
        ValueError: There is no scripted expert that could take over.
    """
    expert = make_expert(environment) if options.takeover_after is not None else None
    begun = client.begin(options.wait_s)
    episode = _Episode(client, environment, seed, options)
    takeover = None
    while not episode.over:
        if not episode.taken_over:
            episode.follow_policy()
            continue
        takeover = episode.steps if takeover is None else takeover
        episode.follow_expert(expert or make_expert(environment))
    client.end(episode.executed, timed_out=episode.timed_out)
    finished = bool(episode.info["success"])
    if options.label:
        client.reward(int(finished))
    return {
        "episode_id": begun["episode_id"],
        "version": begun["version"],
        "seed": seed,
        "success": finished and takeover is None,
        "finished": finished,
        "steps": episode.steps,
        "takeover": takeover,
    }


class _Episode:
    """An episode in the environment, of which the server hears everything.

    Attributes:
        over: Whether it has ended, and `timed_out` whether by the time limit alone.
        steps: Control steps so far.
        executed: Actions of the last chunk that ran; None before the first one.
        info: The environment's last.
    """

    def __init__(self, client: RLClient, environment: RobotEnvironment, seed: int, options: RobotOptions) -> None:
        self.client, self.environment, self.seed, self.options = client, environment, seed, options
        self.observation, self.info = environment.reset(seed=seed)
        self.steps, self.calls, self.over, self.timed_out = 0, 0, False, False
        self.executed: int | None = None

    @property
    def taken_over(self) -> bool:
        """Whether the expert acts: the policy had the time that it gets, or a person asks for it on the page."""
        late = self.options.takeover_after is not None and self.steps >= self.options.takeover_after
        return (late or self.client.takeover) and self.executed is not None

    def follow_policy(self) -> None:
        """Executes one chunk, or what there is time for."""
        reply = self.client.act(
            *self._seen(),
            seed=call_seed(self.seed, self.calls),
            think=self.options.think,
            executed_steps=self.executed,
            embodiment=self.environment.embodiment,
        )
        chunk = np.asarray(reply["actions"])
        self.calls += 1
        for ran, action in enumerate(chunk[: self.options.replan_steps], start=1):
            self._step(action)
            self.executed = ran
            last = self.over or self.taken_over or ran == len(chunk[: self.options.replan_steps])
            if ran < len(chunk) and (self.over or not last):  # else the next request brings the observation
                self.client.observe(*self._seen(), embodiment=self.environment.embodiment)
            if last:
                break

    def follow_expert(self, expert: ScriptedExpert) -> None:
        """Lets the expert act to the end, or until nobody asks for it any more, as a person would who takes over."""
        expert.reset()
        ran = self.executed
        while not self.over and self.taken_over:
            action, _ = expert.act()
            self.client.correct(*self._seen(), action, executed_steps=ran, embodiment=self.environment.embodiment)
            ran = None
            self._step(action)

    def _seen(self) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
        views = {view: self.observation["images"][camera] for view, camera in self.environment.view_cameras.items()}
        return views, self.observation["state"], str(self.info["instruction"])

    def _step(self, action: np.ndarray) -> None:
        self.observation, _, terminated, truncated, self.info = self.environment.step(action)
        self.steps += 1
        self.over = bool(terminated or truncated or self.info["success"])
        self.timed_out = bool(truncated and not terminated and not self.info["success"])


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
            outcome = (
                "success" if record["success"] else "failure" if record["takeover"] is None else "the expert took over"
            )
            logger.info("policy %d: %s", record["version"], outcome)
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
    parser = CommandParser(
        prog="syvla-rl-robot",
        description="A simulated robot that makes rollouts for syvla-serve --rl-run and labels them by the simulator.",
        example="syvla-rl-robot --url http://127.0.0.1:8000 --task lift",
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
    parser.add_argument(
        "--takeover-after",
        type=int,
        metavar="STEPS",
        help="the scripted expert takes over if the policy has not succeeded within so many control steps; by default never",
    )
    parser.add_argument("--no-label", action="store_true", help="leave the labels to a person, at /rl")
    parser.add_argument("--wait-s", type=float, default=3600.0, help="wait so long until an episode may begin")
    parser.add_argument("--output", type=Path, help="JSON file of what became of each rollout")
    parser.arrange(
        {
            "server": ["--url", "--token-file"],
            "environment": ["--env", "--task", "--env-option", "--seed"],
            "rollouts": [
                "--episodes",
                "--replan-steps",
                "--think",
                "--takeover-after",
                "--no-label",
                "--wait-s",
                "--output",
            ],
        }
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-rl-robot`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    label, takeover = not arguments.no_label, arguments.takeover_after
    options = RobotOptions(arguments.replan_steps, arguments.think, label, arguments.wait_s, takeover)
    try:
        if not 0 <= arguments.seed < ROLLOUT_SEED_OFFSET:
            raise ValueError(f"seed: expected 0 to {ROLLOUT_SEED_OFFSET - 1}, got {arguments.seed}")
        if arguments.replan_steps is not None and arguments.replan_steps < 1:
            raise ValueError(f"replan_steps: expected at least 1, got {arguments.replan_steps}")
        if takeover is not None and takeover < 1:
            raise ValueError(f"takeover_after: expected at least 1, since the policy begins, got {takeover}")
        token = None if arguments.token_file is None else arguments.token_file.read_text().strip()
        client = RLClient(arguments.url, token, ClientOptions(retries=20))
        with closing(make_environment(arguments.env, arguments.task, **dict(arguments.env_option))) as environment:
            first = ROLLOUT_SEED_OFFSET + arguments.seed
            records = run_robot(client, environment, arguments.episodes, first, options)
        result = {"rollouts": len(records), "success": success_by_version(records), "episodes": records}
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, ImportError, PolicyError, Unreachable) as error:
        print(error_text("syvla-rl-robot", error), file=sys.stderr)
        return 1
    print(json.dumps({key: result[key] for key in ("rollouts", "success")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
