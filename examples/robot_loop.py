"""A robot loop to adapt: replace `Robot`, start `syvla-serve --model CHECKPOINT`, run this beside the robot.

Needs no torch: `pip install numpy msgpack websockets tenacity wrapt` and `pip install --no-deps -e .` are enough.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np

from syvla.serving import ChunkExecutor, PolicyClient, Watchdog


class Robot:
    """Replace by yours; this one sees black images and stands still."""

    def __init__(self, views: Sequence[str], state_dim: int) -> None:
        self.views, self.state = views, np.zeros(state_dim, np.float32)

    def observe(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Images by view, uint8 (H, W, 3), and the state (D,) in the units of the training data."""
        return {view: np.zeros((224, 224, 3), np.uint8) for view in self.views}, self.state

    def command(self, action: np.ndarray) -> None:
        """Sends one action (D,) to the motors."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="what the robot is to do")
    parser.add_argument("--url", default="ws://127.0.0.1:8000")
    parser.add_argument("--token", help="the server's, if it wants one")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--hz", type=float, help="control rate; by default the checkpoint's")
    parser.add_argument("--replan-steps", type=int, default=4, help="control steps between two requests")
    parser.add_argument(
        "--prefetch", type=int, default=0, help="control steps that the server's answer may take; 0: wait"
    )
    parser.add_argument(
        "--on-silence", choices=("finish", "hold", "slow"), default="finish", help="what to do where no answer is there"
    )
    parser.add_argument("--max-age", type=float, default=5.0, help="seconds; older observations move nothing")
    parser.add_argument("--max-silence", type=float, default=30.0, help="seconds of silence after which the loop ends")
    options = parser.parse_args(argv)

    with PolicyClient(options.url, token=options.token) as client:
        embodiment = next(iter(client.metadata["embodiments"].values()))
        period = 1.0 / (options.hz or embodiment.get("control_hz") or 10.0)
        robot = Robot(client.metadata["views"], embodiment["state_dim"])
        watchdog = Watchdog(max_wait_s=0.8 * period, max_age_s=options.max_age, on_silence=options.on_silence)
        executor = ChunkExecutor(client, options.replan_steps, prefetch=options.prefetch, watchdog=watchdog)
        executor.reset()  # a new episode
        reason = ""
        for _ in range(options.steps):
            started = time.monotonic()
            images, state = robot.observe()
            robot.command(executor.step(images, state, options.prompt))  # within the limits that the server names
            report = executor.report
            if report.source != "chunk" and report.reason.partition(":")[0] != reason:
                reason = report.reason.partition(":")[0]
                print(f"the robot does not follow the policy ({report.source}): {report.reason}", file=sys.stderr)
            if report.silent_s > options.max_silence:
                print(f"the policy was silent for {report.silent_s:.0f} s; the robot is left at rest", file=sys.stderr)
                return 1
            time.sleep(max(0.0, started + period - time.monotonic()))
        executor.close()
    print(f"{executor.counts['steps']} steps done; last thought: {(executor.last_reply or {}).get('thought')}")
    print(", ".join(f"{name} {count}" for name, count in sorted(executor.counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
