"""A robot loop to adapt: replace `Robot`, start `syvla-serve --model CHECKPOINT`, run this beside the robot.

Needs no torch: `pip install numpy msgpack websockets tenacity wrapt` and `pip install --no-deps -e .` are enough.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from syvla.serving import (
    ChunkExecutor,
    CommandLog,
    EmergencyStop,
    EmergencyStopped,
    MeasuredDelay,
    PolicyClient,
    RobotGuard,
    Watchdog,
)
from syvla.serving.contract.action_limits import load_limits
from syvla.serving.contract.chunk_seams import MODES


class Robot:
    """Replace by yours; this one sees black images and stands still."""

    def __init__(self, views: Sequence[str], state_dim: int) -> None:
        self.views, self.state = views, np.zeros(state_dim, np.float32)

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Images by view, uint8 (H, W, 3), and the state (D,) in the units of the training data."""
        return {view: np.zeros((224, 224, 3), np.uint8) for view in self.views}, self.state

    def correction(self) -> np.ndarray | None:
        """The command (D,) of a person who acts instead of the policy, from a leader arm or a gamepad; None: nobody does.

        A server that records (`--record`, `--rl-run`) keeps it, and the trainer learns from it as from a demonstration.
        """
        return None

    def command(self, action: np.ndarray) -> None:
        """Sends one action (D,) to the motors."""

    def quick_stop(self, reason: str) -> None:
        """Brings the motors to rest at once, whatever was commanded; called from any thread, perhaps twice."""


def parser() -> argparse.ArgumentParser:
    """Command line of the loop."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("prompt", help="what the robot is to do")
    found.add_argument("--url", default="ws://127.0.0.1:8000")
    found.add_argument("--token", help="the server's, if it wants one")
    found.add_argument("--steps", type=int, default=500)
    found.add_argument("--hz", type=float, help="control rate; by default the checkpoint's")
    found.add_argument("--replan-steps", type=int, default=4, help="control steps between two requests")
    found.add_argument(
        "--prefetch",
        default="0",
        help="control steps that the server's answer may take; 0: wait; measured: as many as answers take",
    )
    found.add_argument("--seams", choices=MODES, help="how a chunk goes over into the next")
    found.add_argument(
        "--on-silence", choices=("finish", "hold", "slow"), default="finish", help="what to do where no answer is there"
    )
    found.add_argument("--max-age", type=float, default=5.0, help="seconds; older observations move nothing")
    found.add_argument("--max-silence", type=float, default=30.0, help="seconds of silence after which the loop ends")
    found.add_argument("--limits", help="YAML file with limits per robot, beside the server's; see docs/safety.md")
    found.add_argument("--dry-run", action="store_true", help="everything but the command")
    found.add_argument("--log", help="file to write every control step to, as JSON lines")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    with ExitStack() as held:
        client = held.enter_context(PolicyClient(options.url, token=options.token))
        name, embodiment = next(iter(client.metadata["embodiments"].items()))
        period = 1.0 / (options.hz or embodiment.get("control_hz") or 10.0)
        robot = Robot(client.metadata["views"], embodiment["state_dim"])
        emergency = EmergencyStop(robot.quick_stop)
        signal.signal(signal.SIGINT, lambda *_: emergency.trigger("Ctrl+C"))  # any thread may trigger it as well
        log = held.enter_context(CommandLog(options.log)) if options.log else None
        guard = RobotGuard(robot.command, emergency=emergency, dry_run=options.dry_run, log=log)
        measured = options.prefetch == "measured"
        executor = ChunkExecutor(
            client,
            options.replan_steps,
            prefetch=MeasuredDelay(most=options.replan_steps - 1) if measured else int(options.prefetch),
            seams=options.seams,
            watchdog=Watchdog(max_wait_s=0.8 * period, max_age_s=options.max_age, on_silence=options.on_silence),
            limits=load_limits(options.limits).get(name) if options.limits else None,
        )
        executor.reset()  # a new episode
        held.callback(executor.close)
        try:
            status = run(robot, executor, guard, period, options)
        except EmergencyStopped as error:
            print(f"the robot was stopped: {error}", file=sys.stderr)
            status = 1
    print(f"{executor.counts['steps']} steps done; last thought: {(executor.last_reply or {}).get('thought')}")
    print(", ".join(f"{name} {count}" for name, count in sorted(executor.counts.items())))
    return status


def run(robot: Robot, executor: ChunkExecutor, guard: RobotGuard, period: float, options: Any) -> int:
    """The control loop; returns the exit status."""
    reason = ""
    for _ in range(options.steps):
        started = time.monotonic()
        images, state = robot.observe()
        person = robot.correction() if executor.last_reply is not None else None  # the policy begins
        if person is None:
            command = executor.step(images, state, options.prompt)  # within the limits of server and client
        else:
            command = executor.correct(images, state, options.prompt, person)
        report = executor.report
        guard.command(command, state=state, prompt=options.prompt, report=report)
        if report.source not in ("chunk", "correction") and report.reason.partition(":")[0] != reason:
            reason = report.reason.partition(":")[0]
            print(f"the robot does not follow the policy ({report.source}): {report.reason}", file=sys.stderr)
        if report.silent_s > options.max_silence:
            print(f"the policy was silent for {report.silent_s:.0f} s; the robot is left at rest", file=sys.stderr)
            return 1
        time.sleep(max(0.0, started + period - time.monotonic()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
