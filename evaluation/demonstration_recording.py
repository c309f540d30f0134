"""Records demonstrations of scripted experts into a LeRobot v3.0 dataset (`syvla-record`).

Only successful episodes are kept, unless all are asked for. Episode k of a task is made with seed `seed + k` (later
ones where the expert failed), always below `EVALUATION_SEED_OFFSET`, where closed-loop evaluation starts: training and
evaluation never share a seed.

A recording that was cut short goes on when it is started again with the same settings. `recording.json` in the
dataset's folder holds the settings, every attempt and the summary.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syvla.command_line import CommandParser, error_text

from .command_line import ENVIRONMENT_HELP, environment_name, environment_option
from .environments import EVALUATION_SEED_OFFSET, ScriptedExpert, expand_tasks, make_environment, make_expert
from .environments.demonstration import Demonstration, demonstrate
from .environments.disturbance import check_action_noise
from .recording_log import RecordingLog, summarize

SUMMARY_FILE = "recording.json"


@dataclass(frozen=True)
class RecordingSettings:
    """What determines the recorded episodes.

    Attributes:
        env: Name of the back-end.
        tasks: Names of its tasks; episodes of different tasks take turns.
        seed: First seed of each task.
        image_size: Side of the pictures in pixels; None leaves it to the environment.
        keep_failures: Keep failed episodes as well; `recording.json` says which they are.
        use_videos: MP4 videos instead of pictures in the parquet files.
        action_noise: See `Disturbance`.
        recovery: See `Disturbance`.
        env_options: Further keyword arguments of the environment.
    """

    env: str = "tabletop"
    tasks: tuple[str, ...] = ("lift",)
    seed: int = 0
    image_size: int | None = None
    keep_failures: bool = False
    use_videos: bool = False
    action_noise: float = 0.0
    recovery: bool = False
    env_options: dict[str, Any] = field(default_factory=dict)

    def make(self, task: str) -> Any:
        """The environment of one task."""
        size = {} if self.image_size is None else {"image_size": self.image_size}
        return make_environment(self.env, task, **size, **self.env_options)


def record_demonstrations(
    output: str | os.PathLike[str],
    *,
    episodes: int = 120,
    workers: int = 1,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Records `episodes` successful demonstrations of each task into a LeRobot v3.0 dataset.

    Args:
        output: Folder of the dataset. One that holds an unfinished recording with the same settings is continued.
        episodes: Episodes to keep per task; successful ones, unless `keep_failures` is set.
        workers: Processes that simulate; the result is the same for any number.
        progress: Whether to show a progress bar.
        settings: Fields of `RecordingSettings`.

    Returns:
        The summary, also written to `recording.json`: `output`, `episodes`, `frames`, `failures`, `success_rate` of the
        expert, `mean_steps`, `seconds` of this call, per task in `tasks`, and the `environment`'s description.

    Raises:
        ValueError: If a setting is out of its range, the seeds would run into those of evaluation, or the folder holds
            a recording with other settings.
        RuntimeError: If the expert fails far more often than it succeeds.
    """
    from syvla.processing import RobotDatasetWriter

    chosen = RecordingSettings(**settings)
    root = Path(output)
    started = time.monotonic()
    env = _validate(chosen, episodes, workers)
    log = RecordingLog(root / SUMMARY_FILE, asdict(chosen))
    with RobotDatasetWriter(
        root,
        fps=_frames_per_second(env),
        features=dataset_features(env, use_videos=chosen.use_videos),
        robot_type=env.embodiment,
        use_videos=chosen.use_videos,
        thoughts=True,
    ) as writer:
        log.match(writer.num_episodes)
        _record_missing(writer, log, chosen, episodes, workers, progress)
    env.close()
    return log.finish(root, time.monotonic() - started, getattr(env, "description", {}))


def dataset_features(env: Any, *, use_videos: bool) -> dict[str, dict[str, Any]]:
    """LeRobot features of an environment's observations and actions."""
    features: dict[str, dict[str, Any]] = {
        f"observation.images.{camera}": {
            "dtype": "video" if use_videos else "image",
            "shape": list(env.observation_space["images"][camera].shape),
            "names": ["height", "width", "channels"],
        }
        for camera in env.cameras
    }
    for key, names in (("observation.state", env.state_names), ("action", env.action_names)):
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    return features


def _record_missing(
    writer: Any,
    log: RecordingLog,
    settings: RecordingSettings,
    episodes: int,
    workers: int,
    progress: bool,
) -> None:
    """Records until every task has its episodes; tasks take turns, so that any first part of the dataset has all."""
    from tqdm.auto import tqdm

    missing = {task: episodes - summarize(log.of(task))["episodes"] for task in settings.tasks}
    next_seed = {task: settings.seed + len(log.of(task)) for task in settings.tasks}
    goal = episodes * len(settings.tasks)
    with tqdm(total=goal, initial=goal - sum(missing.values()), unit="episode", disable=not progress) as bar:
        while any(count > 0 for count in missing.values()):
            planned = [(task, next_seed[task] + turn) for task in settings.tasks for turn in range(missing[task])]
            planned.sort(key=lambda entry: entry[1])  # stable: tasks take turns, in a resumed recording as well
            for attempt in _demonstrations(settings, workers, planned):
                next_seed[attempt.task] = attempt.seed + 1
                kept = attempt.success or settings.keep_failures
                log.add(attempt, kept)
                if kept:
                    _save(writer, attempt)
                    missing[attempt.task] -= 1
                    bar.update()
                if not attempt.success:
                    bar.set_postfix(failures=summarize(log.attempts)["failures"])
                if not settings.keep_failures:
                    _check_expert(log.of(attempt.task), attempt.task)


def _check_expert(attempts: Sequence[dict[str, Any]], task: str) -> None:
    counts = summarize(attempts)
    if counts["failures"] > 10 + counts["episodes"]:
        raise RuntimeError(
            f"task {task!r}: the expert failed in {counts['failures']} of {len(attempts)} episodes; lower "
            "action_noise, switch recovery off, or ask for fewer distractors"
        )


def _save(writer: Any, attempt: Demonstration) -> None:
    for step, (state, action, thought) in enumerate(
        zip(attempt.states, attempt.actions, attempt.thoughts, strict=True)
    ):
        frame = {f"observation.images.{camera}": pictures[step] for camera, pictures in attempt.images.items()}
        frame |= {"observation.state": state, "action": action}
        writer.add_frame(frame, task=attempt.instruction, thought=thought)
    writer.save_episode()


class _Demonstrator:
    """Makes demonstrations, keeping one environment and expert per task."""

    def __init__(self, settings: RecordingSettings) -> None:
        self._settings = settings
        self._stages: dict[str, tuple[Any, ScriptedExpert]] = {}

    def __call__(self, task: str, seed: int) -> Demonstration:
        if task not in self._stages:
            env = self._settings.make(task)
            self._stages[task] = (env, make_expert(env))
        env, expert = self._stages[task]
        settings = self._settings
        return demonstrate(env, expert, seed=seed, action_noise=settings.action_noise, recovery=settings.recovery)


_demonstrator: _Demonstrator  # of a worker process, set when it starts


def _start_worker(settings: RecordingSettings) -> None:
    global _demonstrator
    _demonstrator = _Demonstrator(settings)


def _demonstrate_in_worker(task: str, seed: int) -> Demonstration:
    return _demonstrator(task, seed)


def _demonstrations(
    settings: RecordingSettings, workers: int, planned: Sequence[tuple[str, int]]
) -> Iterator[Demonstration]:
    """Demonstrations in the order of `planned`, a few of them in flight at a time."""
    if workers == 1:
        demonstrator = _Demonstrator(settings)
        yield from (demonstrator(task, seed) for task, seed in planned)
        return
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that runs torch may hang
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(settings,)) as pool:
        running: deque[Future[Demonstration]] = deque()
        for task, seed in planned:
            running.append(pool.submit(_demonstrate_in_worker, task, seed))
            if len(running) >= 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _validate(settings: RecordingSettings, episodes: int, workers: int) -> Any:
    """Raises a `ValueError` for what cannot work; returns the environment of the first task."""
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}")
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if not settings.tasks or len(set(settings.tasks)) != len(settings.tasks):
        raise ValueError(f"tasks: expected one or more different names, got {list(settings.tasks)}")
    last = settings.seed + 2 * episodes + 11  # beyond what `_check_expert` lets through
    if settings.seed < 0 or last >= EVALUATION_SEED_OFFSET:
        raise ValueError(
            f"seed: expected 0 to {EVALUATION_SEED_OFFSET - (last - settings.seed) - 1} for {episodes} episodes, got "
            f"{settings.seed}; seeds from {EVALUATION_SEED_OFFSET} on belong to closed-loop evaluation"
        )
    check_action_noise(settings.action_noise)
    first, *others = [settings.make(task) for task in settings.tasks]
    for env in others:
        env.close()
    return first


def _frames_per_second(env: Any) -> int:
    rate: int = round(env.control_hz)
    if abs(rate - env.control_hz) > 1e-6:
        raise ValueError(f"control_hz: expected a whole number for a dataset's frame rate, got {env.control_hz:g}")
    return rate


def build_parser() -> argparse.ArgumentParser:
    """The command line of `syvla-record`."""
    defaults = RecordingSettings()
    parser = CommandParser(
        prog="syvla-record",
        description="Record demonstrations of a scripted expert into a LeRobot v3.0 dataset.",
        example="syvla-record --task lift --episodes 200 --output datasets/lift",
    )
    parser.add_argument("--env", default=defaults.env, type=environment_name, help=ENVIRONMENT_HELP)
    parser.add_argument(
        "--task",
        action="append",
        help="task or group of tasks, repeat for several (default: lift)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--episodes", type=int, default=120, help="episodes per task, successful ones by default")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="first seed of each task")
    parser.add_argument(
        "--output",
        required=True,
        default=argparse.SUPPRESS,
        help="folder of the dataset; an unfinished recording is continued",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        default=argparse.SUPPRESS,
        help="side of the pictures in pixels; by default the environment's own size",
    )
    parser.add_argument(
        "--keep-failures", action="store_true", help="keep failed episodes too; recording.json says which they are"
    )
    storage = parser.add_mutually_exclusive_group()
    options: dict[str, Any] = {"dest": "storage", "action": "store_const", "default": "images"}
    storage.add_argument(
        "--images-in-parquet", const="images", help="lossless pictures in the parquet files", **options
    )
    storage.add_argument("--videos", const="videos", help="MP4 videos", **options)
    parser.add_argument(
        "--action-noise",
        type=float,
        default=defaults.action_noise,
        help="noise on the executed (not the recorded) actions, as a share of the largest motion per control step",
    )
    parser.add_argument(
        "--recovery", action="store_true", help="push the robot now and then and record how it recovers"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument(
        "--env-option",
        type=environment_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment argument (JSON), such as distractors=1",
    )
    parser.arrange(
        {
            "episodes": ["--env", "--task", "--env-option", "--episodes", "--seed", "--workers"],
            "dataset": ["--output", "--image-size", "--images-in-parquet", "--videos", "--keep-failures"],
            "motion": ["--action-noise", "--recovery"],
        }
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-record`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        summary = record_demonstrations(
            arguments.output,
            episodes=arguments.episodes,
            workers=arguments.workers,
            env=arguments.env,
            tasks=tuple(expand_tasks(arguments.env, getattr(arguments, "task", RecordingSettings.tasks))),
            seed=arguments.seed,
            image_size=getattr(arguments, "image_size", None),
            keep_failures=arguments.keep_failures,
            use_videos=arguments.storage == "videos",
            action_noise=arguments.action_noise,
            recovery=arguments.recovery,
            env_options=dict(arguments.env_option),
        )
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        print(error_text("syvla-record", error), file=sys.stderr)
        return 1
    for task, counts in summary["tasks"].items():
        print(
            f"{task}: {counts['episodes']} episodes, {counts['frames']} frames, {counts['mean_steps']} steps each, "
            f"{counts['failures']} failed attempts {'among them' if arguments.keep_failures else 'left out'}"
        )
    for fact, value in summary["environment"].items():
        print(f"{fact}: {value}")
    print(f"{summary['output']} in {summary['seconds']} s; details in {Path(summary['output']) / SUMMARY_FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
