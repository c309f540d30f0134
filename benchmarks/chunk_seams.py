"""Where one chunk follows another, with late answers: `python -m benchmarks.chunk_seams --output outputs/chunk_seams`.

A robot of the tabletop asks for its next chunk while the old one runs; the answer comes `latency` control steps later. Latency
is simulated in control steps, so success and smoothness do not depend on the machine's speed. The robot's side is the
executor that real robots use (`ChunkExecution`), the policy a small SyVLA that reads poses (`chunk_seams_policy`), trained here
once. Modes:

- hold: the robot stands still until the answer is there (no prefetch);
- switch, blend, ensemble, rtc_identity, rtc: it goes on; see `syvla.serving.contract.chunk_seams`.

Per episode: success; jump, the largest change of a joint's command from one step to the next [rad]; acceleration, the 95th
percentile over the steps of the largest joint acceleration of the commands [rad/s^2]. Intervals at 95%: Wilson for success,
bootstrap over episodes for the rest. "seconds" is the median time of one answer to one robot, on this machine. Started again,
it goes on with the cells that are missing. Raw outcomes per episode: `benchmarks/results/chunk_seams.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.chunk_end_policy import Statistics, make_chunks, observation, train
from benchmarks.chunk_seams_policy import ACTION_DIM, Robot, demonstrations, make_model, pose_state
from benchmarks.reporting import print_table, write_result
from syvla.evaluation.environments.base import EVALUATION_SEED_OFFSET
from syvla.modeling_syvla.flow_matching import continuation_weights
from syvla.serving.client.chunk_execution import ChunkExecution
from syvla.serving.client.silence import Watchdog
from syvla.serving.contract.chunk_seams import MODES

HOLD = "hold"
JOINTS = [i for i in range(ACTION_DIM) if i % 7 != 6]  # without the grippers, which are meters


@dataclass
class DelayedAnswer:
    """An answer that is there after `left` further control steps."""

    reply: dict[str, Any]
    left: int

    def done(self) -> bool:
        return self.left <= 0

    def exception(self) -> None:
        return None

    def result(self) -> dict[str, Any]:
        return self.reply


class SimulatedExecutor(ChunkExecution[DelayedAnswer]):
    """A robot's executor whose answers take a number of control steps. Its first chunk comes before it moves."""

    def __init__(self, mode: str, replan_steps: int, latency: int) -> None:
        prefetch = 0 if mode == HOLD else latency
        watchdog = Watchdog(max_wait_s=0.0, max_age_s=math.inf, on_silence="hold" if mode == HOLD else "finish")
        super().__init__(None, replan_steps, prefetch, "switch" if mode == HOLD else mode, watchdog, None)  # type: ignore[arg-type]
        self.latency = latency

    def ask(self) -> dict[str, Any] | None:
        """Options of the request of this step; None without one."""
        self._begin_step("place")
        for answer in (self._pending, self._abandoned):
            if answer is not None:
                answer.left -= 1
        return self._request({})

    def answered(self, actions: np.ndarray) -> None:
        """Sends the request that `ask` returned."""
        self._asked(DelayedAnswer({"actions": actions}, self.latency if self._moved else 0))

    def act(self, state: np.ndarray) -> np.ndarray:
        """The command of this step."""
        self._collect()
        return self._command(state)


class PosePolicy:
    """Chunks of the trained model, batched over robots; continued as `SyVLAPolicy.denoise` does."""

    def __init__(self, model: Any, scale: Statistics) -> None:
        self.model, self.scale = model, scale

    def chunks(
        self, states: np.ndarray, requests: Sequence[dict[str, Any]], noises: Sequence[np.ndarray]
    ) -> np.ndarray:
        """(B, T, D) for pose states (B, D_state)."""
        size = self.model.config.chunk_size
        target, weights = torch.zeros(len(states), size, ACTION_DIM), torch.zeros(len(states), size)
        for row, request in enumerate(requests):
            if "prev_chunk" in request:
                rest = (request["prev_chunk"] - self.scale.action[0]) / self.scale.action[1]
                target[row, : len(rest)] = torch.tensor(rest, dtype=torch.float32)
                weights[row] = continuation_weights(request["delay_steps"], len(rest), size)
        continued = any("prev_chunk" in request for request in requests)
        guidance = {request["max_guidance_weight"] for request in requests if "max_guidance_weight" in request}
        scaled = torch.tensor((states - self.scale.state[0]) / self.scale.state[1], dtype=torch.float32)
        chunk = self.model.sample_actions(
            *observation(self.model, scaled),
            noise=torch.tensor(np.stack(noises), dtype=torch.float32),
            continuation=(target, weights) if continued else None,
            max_guidance_weight=guidance.pop() if guidance else None,
        )
        return np.asarray(chunk.numpy() * self.scale.action[1] + self.scale.action[0])


def run_cell(policy: PosePolicy, robot: Robot, mode: str, latency: int, replan: int, seeds: Sequence[int]) -> list[Any]:
    """Episodes of one mode at one latency, in step with each other."""
    envs = [robot.make() for _ in seeds]
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    executors = [SimulatedExecutor(mode, max(replan, latency + 1), latency) for _ in seeds]
    calls, commands = [0] * len(seeds), [[] for _ in seeds]  # type: ignore[var-annotated]
    outcomes: dict[int, dict[str, Any]] = {}
    shape = (policy.model.config.chunk_size, ACTION_DIM)
    while len(outcomes) < len(seeds):
        active = [i for i in range(len(seeds)) if i not in outcomes]
        states = {i: pose_state(envs[i]) for i in active}
        asked = {i: options for i in active if (options := executors[i].ask()) is not None}
        if asked:
            noises = [np.random.default_rng([seeds[i], calls[i]]).standard_normal(shape) for i in asked]
            answers = policy.chunks(np.stack([states[i] for i in asked]), list(asked.values()), noises)
            for i, chunk in zip(asked, answers, strict=True):
                executors[i].answered(chunk)
                calls[i] += 1
        for i in active:
            command = executors[i].act(states[i])
            commands[i].append(command)
            _, _, terminated, truncated, info = envs[i].step(command)
            if terminated or truncated:
                outcomes[i] = {
                    "seed": seeds[i],
                    "success": bool(info["success"]),
                    **motion(commands[i], robot.control_hz),
                }
                envs[i].close()
    return [outcomes[i] for i in range(len(seeds))]


def motion(commands: Sequence[np.ndarray], hz: float) -> dict[str, float]:
    """Jump and acceleration of an episode's commands."""
    joints = np.stack(commands)[:, JOINTS]
    change, acceleration = np.abs(np.diff(joints, axis=0)), np.abs(np.diff(joints, 2, axis=0)) * hz**2
    return {
        "steps": len(joints),
        "jump": float(change.max()),
        "acceleration_p95": float(np.quantile(acceleration.max(1), 0.95)),
    }


def seconds_per_answer(policy: PosePolicy, repeats: int = 20) -> dict[str, float]:
    """Median seconds of one answer to one robot: free, and continued in both forms."""
    size = policy.model.config.chunk_size
    noise, state = [np.zeros((size, ACTION_DIM))], policy.scale.state[0][None]
    rest = {"prev_chunk": np.tile(policy.scale.action[0], (size // 2, 1)), "delay_steps": 4}
    ways = {"switch": {}, "rtc_identity": rest, "rtc": {**rest, "max_guidance_weight": 5.0}}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, request in ways.items():
            started = time.perf_counter()
            policy.chunks(state, [request], noise)
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def trained(output: Path, robot: Robot, options: argparse.Namespace) -> PosePolicy:
    """The policy; trained if an earlier start has not done so."""
    episodes = demonstrations(robot, options.demonstrations)
    scale = Statistics.of(episodes)
    model, path = make_model(options.chunk_size, 0), output / "policy.safetensors"
    from safetensors.torch import load_file, save_file

    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)
    else:
        chunks = make_chunks(episodes, scale, options.chunk_size)
        train(model, chunks, steps=options.train_steps, batch=64, seed=0)
        output.mkdir(parents=True, exist_ok=True)
        kept = {k: v.contiguous() for k, v in model.state_dict().items() if k.startswith(("expert.", "adapter."))}
        save_file(kept, path)
    return PosePolicy(model.eval(), scale)


def summary(episodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and 95% intervals of one cell."""
    from scipy.stats import binomtest, bootstrap

    found: dict[str, Any] = {"episodes": len(episodes), "success": sum(e["success"] for e in episodes)}
    interval = binomtest(found["success"], len(episodes)).proportion_ci(method="wilson")
    found["success_interval"] = [round(float(interval.low), 4), round(float(interval.high), 4)]
    for name in ("jump", "acceleration_p95", "steps"):
        values = np.array([e[name] for e in episodes], float)
        found[name] = round(float(values.mean()), 5)
        if np.ptp(values):
            ends = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
            interval = ends.confidence_interval
            found[f"{name}_interval"] = [round(float(interval.low), 5), round(float(interval.high), 5)]
    found["jump_max"] = round(max(e["jump"] for e in episodes), 5)
    return found


def draw(cells: dict[str, dict[str, Any]], path: Path) -> None:
    """Success, jump and acceleration over latency, a line per mode with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    parts = (
        ("success", "success rate"),
        ("jump", "largest jump [rad]"),
        ("acceleration_p95", "acceleration, 95% [rad/s²]"),
    )
    for axes, (name, label) in zip(figure.subplots(1, 3), parts, strict=True):
        for mode in (HOLD, *MODES):
            own = [(cell["latency"], cell["summary"]) for cell in cells.values() if cell["mode"] == mode]
            if not own:
                continue
            own.sort(key=lambda pair: pair[0])
            values = np.array([s[name] / (s["episodes"] if name == "success" else 1) for _, s in own])
            ends = np.array([s.get(f"{name}_interval", [v, v]) for (_, s), v in zip(own, values, strict=True)])
            errors = np.abs(ends.T - values)
            axes.errorbar([at for at, _ in own], values, yerr=errors, marker="o", markersize=3, capsize=2, label=mode)
        axes.set_xlabel("latency [control steps]")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/chunk_seams"))
    parser.add_argument("--task", default="place")
    parser.add_argument("--hz", type=float, default=40.0, help="control rate")
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--replan-steps", type=int, default=8, help="or latency + 1, if that is more")
    parser.add_argument("--latencies", type=int, nargs="+", default=[0, 1, 2, 4, 6, 8])
    parser.add_argument("--modes", nargs="+", default=[HOLD, *MODES], choices=[HOLD, *MODES])
    parser.add_argument("--episodes", type=int, default=40)
    options = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    robot = Robot(options.task, options.hz)
    policy = trained(options.output, robot, options)
    cells_file = options.output / "cells.json"
    cells = json.loads(cells_file.read_text()) if cells_file.is_file() else {}
    seeds = [EVALUATION_SEED_OFFSET + i for i in range(options.episodes)]
    for latency in options.latencies:
        for mode in options.modes:
            name = f"{mode} {latency}"
            if len(cells.get(name, {}).get("episodes", ())) != len(seeds):
                episodes = run_cell(policy, robot, mode, latency, options.replan_steps, seeds)
                cells[name] = {"mode": mode, "latency": latency, "summary": summary(episodes), "episodes": episodes}
                cells_file.write_text(json.dumps(cells))
                print("done", name, cells[name]["summary"], flush=True)
    names = ("success", "success_interval", "jump", "jump_max", "acceleration_p95", "steps")
    print_table(["cell", *names], [[name, *(cell["summary"][n] for n in names)] for name, cell in cells.items()])
    settings = {key: value for key, value in vars(options).items() if key != "output"}
    result = {"settings": settings, "seconds_per_answer": seconds_per_answer(policy), "cells": cells}
    path = write_result("chunk_seams", result)
    draw(cells, path.with_suffix(".png"))
    print(path)


if __name__ == "__main__":
    main()
