"""Closed-loop evaluation: a policy acts in an environment until success or the time limit; success rates result.

Episode i of a task uses environment seed `EVALUATION_SEED_OFFSET + SEEDS_PER_RUN * seed + i`, which no demonstration
uses; the noise of a policy call is derived from that seed and the call's number. So an episode's outcome depends
neither on the batch it ran in nor on the order, up to the rounding differences of batched arithmetic.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from syvla.command_line import CommandParser, error_text

from .baselines import BASELINES, Baseline
from .closed_loop_result import ClosedLoopResult, describe_machine, write_summary
from .command_line import ENVIRONMENT_HELP, environment_name, environment_option
from .control_rate import CONTROL_RATES, at_the_environments_rate
from .environments import check_tasks, expand_tasks, make_environment
from .environments.base import EVALUATION_SEED_OFFSET
from .environments.custom import check_environment, is_custom
from .episode_records import fingerprint
from .episode_slot import SlotSettings
from .idle_options import refuse_idle_options
from .lockstep import EpisodeJob, LockstepRunner
from .policy import Policy, load_policy
from .run_page import write_run_page
from .shards import Shard, merge_shards

SEEDS_PER_RUN = 10_000
"""Evaluation seeds set apart for each `seed`, so that runs with different seeds share no episode."""


def evaluation_seeds(seed: int, episodes: int) -> list[int]:
    """Environment seeds of an evaluation run.

    Raises:
        ValueError: If `seed` is negative or `episodes` leaves no seed apart for the next run.
    """
    if seed < 0 or not 1 <= episodes <= SEEDS_PER_RUN:
        raise ValueError(
            f"expected seed >= 0 and 1 <= episodes <= {SEEDS_PER_RUN}, got {seed=} {episodes=}; for more episodes use"
            " several seeds"
        )
    first = EVALUATION_SEED_OFFSET + SEEDS_PER_RUN * seed
    return list(range(first, first + episodes))


def evaluate_closed_loop(
    policy: Policy | Baseline | str,
    env: str = "tabletop",
    tasks: str | Sequence[str] = "lift",
    *,
    episodes: int = 40,
    seed: int = 0,
    batch_size: int = 8,
    workers: int = 1,
    replan_steps: int | None = None,
    control_rate: str = "refuse",
    environment_options: Mapping[str, Any] | None = None,
    policy_options: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    video_episodes: int = 0,
    only: Sequence[int] | None = None,
    shard: str | None = None,
    progress: bool = True,
) -> ClosedLoopResult:
    """Runs a policy in an environment and counts successes.

    Args:
        policy: A policy, or what `load_policy` takes: folder or Hub id of a checkpoint, URL of a policy server,
            "expert", "still" or "random".
        env: Name of the environment back-end, or "module:Class" of your own, see `environments.custom`.
        tasks: Task name or names; also names of groups, such as "libero_spatial", "hard" or "all".
        episodes: Episodes per task.
        seed: Which set of evaluation episodes; every seed names its own.
        batch_size: Episodes that run in lockstep, answered by one policy call.
        workers: Processes that simulate them; 1 simulates in this process. Changes nothing but the speed. They start
            afresh, so a script that asks for more needs the guard `if __name__ == "__main__":`.
        replan_steps: Actions executed of each chunk. None executes what the policy's own client does, where its dialect says
            so, else the whole chunk.
        control_rate: What to do with a policy of another control rate than the environment's: "refuse" it, or "resample" its
            chunks, of target positions only. Both rates stand in the summary.
        environment_options: Keyword arguments of `make_environment`, such as `max_steps`.
        policy_options: Keyword arguments of `load_policy` where `policy` is a string, such as `think`.
        output: Folder for `episodes.jsonl`, and recordings in `videos/`. Episodes found there under the same settings
            are not run again, except for those that ended in an error.
        video_episodes: Number of episodes per task to record; needs `output`.
        only: Environment seeds to run instead of those of `seed` and `episodes`: single episodes again.
        shard: "2/8" runs the second of eight parts of the evaluation; `merge_shards` puts them together.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If an argument is out of range, a task is unknown, or the policy's actions have the wrong shape.
        ConnectionError: If the policy server does not answer.
        WorkerFault: If something other than the environment fails in a worker process.
    """
    started = time.monotonic()
    seeds = evaluation_seeds(seed, episodes) if only is None else list(dict.fromkeys(only))
    if not seeds or min(seeds) < EVALUATION_SEED_OFFSET:
        raise ValueError(
            f"only: expected environment seeds from {EVALUATION_SEED_OFFSET} on, got {seeds}; episodes.jsonl and report.html "
            f"name those of an evaluation (--episode {EVALUATION_SEED_OFFSET} is the first)"
        )
    if batch_size < 1 or workers < 1 or not tasks:
        raise ValueError(
            f"expected batch_size >= 1, workers >= 1 and at least one task, got {batch_size=} {workers=} {tasks=}"
        )
    if control_rate not in CONTROL_RATES:
        raise ValueError(f"control_rate: expected one of {', '.join(CONTROL_RATES)}, got {control_rate!r}")
    part = None if shard is None else Shard.parse(shard)
    if video_episodes < 0:
        raise ValueError(f"video_episodes: expected 0 or more, got {video_episodes}")
    if video_episodes and output is None:
        raise ValueError("video_episodes: recordings need a folder; set output")
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise ValueError(f"output: {output} is a file; name a folder, which is made if it does not exist")
    options = dict(environment_options or {})
    names = expand_tasks(env, [tasks] if isinstance(tasks, str) else tasks)
    run: dict[str, Any] = {
        "policy": policy if isinstance(policy, str) else policy.name,
        "policy_options": {key: value for key, value in (policy_options or {}).items() if key != "token"},
        **{"tasks": names, "episodes": episodes, "seed": seed, "batch_size": batch_size, "workers": workers},
        **describe_machine(),
    }
    jobs = [EpisodeJob(task, number, number in seeds[:video_episodes]) for task in names for number in seeds]
    if part is not None:
        jobs, run["shard"] = part.take(jobs), {"part": str(part), "seeds": seeds}
    with ExitStack() as held:
        check_tasks(env, names, options)
        with closing(make_environment(env, names[0], **options)) as sample:
            for task in set(names) - set(sample.tasks):
                make_environment(env, task, **options).close()  # which says what is known, before anything has run
            if is_custom(env):
                check_environment(env, sample)
            if isinstance(policy, str):
                policy = load_policy(policy, sample, **(policy_options or {}))
                held.callback(getattr(policy, "close", lambda: None))
            if not isinstance(policy, Baseline):
                policy, run["control_rate"] = at_the_environments_rate(policy, sample, control_rate)
            action_names = tuple(sample.action_names)
            run["control_hz"] = float(sample.control_hz)
            run["environment"] = dict(getattr(sample, "description", {}))
        replan = _replan_steps(policy, replan_steps)
        settings = {"env": env, "environment_options": options, "replan_steps": replan, **policy.identity()}
        # What the policy sees and is asked decides the outcome, also where it is the environment's default.
        settings |= {name: run["environment"][name] for name in ("look", "sentences") if name in run["environment"]}
        shared = SlotSettings(env, options, fingerprint(settings), str(output) if output is not None else None)
        runner = LockstepRunner(
            policy, shared, replan, action_names, batch_size=batch_size, workers=workers, progress=progress
        )
        records = runner.run(jobs)
    return ClosedLoopResult(records, settings, time.monotonic() - started, run)


def _replan_steps(policy: Policy | Baseline, asked_for: int | None) -> int:
    chunk = 1 if isinstance(policy, Baseline) else policy.chunk_size
    published = min(getattr(policy, "replan_steps", None) or chunk, chunk)
    replan = published if asked_for is None else asked_for
    if not 1 <= replan <= chunk:
        raise ValueError(f"replan_steps: expected 1 to {chunk}, the policy's chunk size, got {asked_for}")
    return replan


_GROUPS = {
    "what is evaluated": ["--model", "--server", "--device", "--dtype", "--compile"],
    "episodes": ["--env", "--task", "--env-option", "--episodes", "--seed", "--episode"],
    "execution": ["--batch-size", "--workers", "--replan-steps", "--control-rate"],
    "inference": ["--think", "--max-new-tokens", "--num-steps", "--noise", "--advantage-guidance"],
    "results": ["--output", "--video-episodes", "--quiet", "--shard", "--merge"],
}
"""Groups of the help."""


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-eval`."""
    parser = CommandParser(
        prog="syvla-eval",
        description="Closed-loop success rate of a policy, with its 95% Wilson interval.",
        example="syvla-eval --model outputs/demo/checkpoint --task lift --episodes 40",
    )
    baselines = ", ".join(repr(name) for name in BASELINES)
    parser.add_argument(
        "--model", help=f"checkpoint folder or Hub id, or one of {baselines}; with --server only a name"
    )
    parser.add_argument(
        "--server", metavar="URL", help="policy server to ask instead: ws://host:port or http://host:port"
    )
    parser.add_argument("--env", default="tabletop", type=environment_name, help=ENVIRONMENT_HELP)
    parser.add_argument(
        "--task",
        action="append",
        default=argparse.SUPPRESS,
        help="task or group of tasks, repeat for several (default: lift)",
    )
    parser.add_argument("--episodes", type=int, default=40, help="episodes per task")
    parser.add_argument("--seed", type=int, default=0, help="which set of evaluation episodes; each names its own")
    parser.add_argument(
        "--episode",
        type=int,
        action="append",
        metavar="SEED",
        help="run the episode of this environment seed alone; repeatable",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="episodes that run in lockstep, per policy call")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate; 1 simulates in this one")
    parser.add_argument(
        "--replan-steps", type=int, help="actions executed of each chunk; by default the dialect's own, else all"
    )
    parser.add_argument(
        "--control-rate",
        default="refuse",
        choices=CONTROL_RATES,
        help="what to do with a policy of another control rate than the environment's",
    )
    _add_inference(parser)
    served = parser.add_argument_group("policy server")
    served.add_argument(
        "--dialect", default="lerobot", help="keys of observations: a name, or the path of a .yaml file"
    )
    served.add_argument("--prompt", help="instruction to send instead of the environment's")
    served.add_argument("--timeout", type=float, default=60.0, help="seconds until the server has to answer")
    served.add_argument("--connections", type=int, default=1, help="requests of one batch at the same time")
    served.add_argument("--token-file", type=Path, help="file with the server's token")
    parser.add_argument("--device", help="torch device; by default a GPU where there is one")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="parameter dtype, such as bfloat16; auto: bfloat16 on a GPU that has it, else the checkpoint's",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile for the full batch size")
    parser.add_argument(
        "--env-option",
        type=environment_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="environment argument (JSON), such as max_steps=200",
    )
    parser.add_argument(
        "--shard", metavar="K/N", help="run part K of N, on a machine of its own; --merge puts the parts together"
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="run nothing: put the --output folders of all shards together into --output",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/evaluation"), help="folder of the results")
    parser.add_argument("--video-episodes", type=int, default=0, help="episodes per task to record")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.arrange(_GROUPS)
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--think", action="store_true", help="generate a thought before each action chunk")
    parser.add_argument("--max-new-tokens", type=int, help="longest thought in tokens; by default the model's")
    parser.add_argument("--num-steps", type=int, help="Euler steps of the flow; by default the model's")
    parser.add_argument(
        "--noise",
        choices=("random", "zero"),
        help="where a checkpoint's flow begins: random (the default), or its mean; a server has an option of its own",
    )
    parser.add_argument(
        "--advantage-guidance",
        type=float,
        metavar="W",
        help="of a checkpoint of syvla-ppo --objective recap, see syvla-serve; a server has an option of its own",
    )


def _policy_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_policy` for the kind of policy that was asked for."""
    names = ["think", "max_new_tokens", "num_steps"]
    if arguments.server:
        from syvla.serving.server.settings import read_token

        names += ["dialect", "timeout", "connections", "prompt"]
        token = read_token(arguments.token_file) if arguments.token_file else None
        return {"token": token, "name": arguments.model, **{name: getattr(arguments, name) for name in names}}
    if arguments.model in BASELINES:
        return {}
    chosen = {name: getattr(arguments, name) for name in ("noise", "advantage_guidance")}
    options = {name: getattr(arguments, name) for name in [*names, "device", "dtype", "compile"]}
    return {**options, **{name: value for name, value in chosen.items() if value is not None}}


def _evaluate(arguments: argparse.Namespace) -> ClosedLoopResult:
    return evaluate_closed_loop(
        arguments.server or arguments.model,
        arguments.env,
        getattr(arguments, "task", "lift"),
        episodes=arguments.episodes,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        replan_steps=arguments.replan_steps,
        control_rate=arguments.control_rate,
        environment_options=dict(arguments.env_option),
        policy_options=_policy_options(arguments),
        output=arguments.output,
        video_episodes=arguments.video_episodes,
        only=arguments.episode,
        shard=arguments.shard,
        progress=not arguments.quiet,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-eval`.

    Returns:
        The exit status: 0; 1 if the evaluation could not run; 3 if it ran, but environments crashed twice in some
        episodes, which are then missing from the success rate.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.merge is None and arguments.model is None and arguments.server is None:
        parser.error("expected --model, --server or --merge")
    if arguments.merge and (arguments.model or arguments.server or arguments.shard):
        parser.error("--merge runs nothing: leave out --model, --server and --shard")
    if arguments.server and "://" not in arguments.server:
        arguments.server = f"ws://{arguments.server}"
    try:
        if not arguments.merge:
            refuse_idle_options(arguments, parser)
        result = merge_shards(arguments.merge, arguments.output) if arguments.merge else _evaluate(arguments)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(error_text("syvla-eval", error), file=sys.stderr)
        return 1
    write_summary(result, arguments.output / "summary.json")
    write_run_page(result, arguments.output / "report.html")
    for task, rate in result.by_task.items():
        print(f"{task}: {rate}")
    if len(result.by_task) > 1:
        print(f"total: {result.total}")
    for name, fact in result.run["environment"].items():
        print(f"{result.settings['env']}: {name}: {fact}")
    for record in result.errors:
        print(f"error: {record.task}, seed {record.seed}, {record.attempts} attempts: {record.error}", file=sys.stderr)
    print(f"written to {arguments.output}")
    return 3 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
