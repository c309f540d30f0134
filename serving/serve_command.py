"""`syvla-serve`: a checkpoint as a policy server."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syvla.command_line import CommandParser, error_text

from .contract.action_limits import load_limits
from .server.settings import ServerSettings, read_token
from .wire.msgpack_codec import CodecLimits
from .wire.request_reading import OptionCaps

if TYPE_CHECKING:
    from .policy_server import PolicyServer


def build_parser() -> argparse.ArgumentParser:
    """Command line of `syvla-serve`."""
    default = ServerSettings()
    parser = CommandParser(
        prog="syvla-serve",
        description="Serve a SyVLA checkpoint: openpi's websocket protocol and HTTP on one port.",
        example="syvla-serve --model outputs/my_task --port 8000",
    )
    parser.add_argument("--model", help="checkpoint folder or Hub id; needed except with --rl-run")
    parser.add_argument("--revision", help="commit, branch or tag on the Hub")
    parser.add_argument("--device", help="torch device; by default a GPU if there is one")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="parameter dtype, such as bfloat16; auto: bfloat16 on a GPU that has it, else the checkpoint's",
    )

    access = parser.add_argument_group("access")
    access.add_argument("--host", default=default.host, help="address to listen on")
    access.add_argument("--port", type=int, default=default.port, help="port to listen on; 0: a free one")
    access.add_argument("--token-file", type=Path, help="file with the token that clients must send")
    access.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names under which clients may address the server, beside loopback's",
    )
    access.add_argument(
        "--insecure", action="store_true", help="listen beyond loopback without a token: everyone may move the robot"
    )
    access.add_argument("--tls-certificate", help="PEM file, for wss:// and https://")
    access.add_argument("--tls-key", help="PEM file")

    robot = parser.add_argument_group("robot")
    robot.add_argument("--embodiment", help="robot of requests that name none; by default the checkpoint's only one")
    robot.add_argument(
        "--dialect",
        action="append",
        metavar="NAME_OR_YAML",
        help="how clients name observations, repeat for several; by default all that come with the package",
    )
    robot.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="VIEW=CAMERA",
        help="name of a camera in LeRobot's keys, such as center=head; the view is then required",
    )
    robot.add_argument("--limits", type=Path, help="YAML file with joint and rate limits per embodiment")
    robot.add_argument("--record", type=Path, metavar="DIR", help="record served episodes as a LeRobot dataset")

    learning = parser.add_argument_group("reinforcement learning")
    learning.add_argument(
        "--rl-run",
        type=Path,
        metavar="DIR",
        help="serve a run of syvla-ppo (its output_dir): its policies, episodes, rewards",
    )
    learning.add_argument("--rl-rollouts", type=int, help="rollouts per update; by default the trainer's number")
    learning.add_argument("--rl-updates", type=int, help="updates of the run; by default the trainer's number")
    learning.add_argument(
        "--rl-ahead", type=int, default=0, help="rollouts beyond those, for a trainer that allows stale ones"
    )
    learning.add_argument(
        "--rl-graded-rewards", action="store_true", help="people may give rewards between 0 and 1 as well, see /rl"
    )
    learning.add_argument(
        "--rl-silent-s", type=float, default=30.0, help="abort the episode of a robot silent for so long"
    )

    _add_inference(parser)
    _add_load(parser, default)
    parser.add_argument("--verbose", action="store_true", help="log every connection")
    return parser


def _add_inference(parser: argparse.ArgumentParser) -> None:
    thinking = parser.add_argument_group("inference")
    thinking.add_argument("--think", default="off", metavar="on|off|K", help="think never, always, or every K calls")
    thinking.add_argument("--max-new-tokens", type=int, help="longest thought in tokens; by default the model's")
    thinking.add_argument("--num-steps", type=int, help="Euler steps of the flow; by default the model's")
    thinking.add_argument(
        "--noise",
        choices=("random", "zero"),
        default="random",
        help="where the flow begins: random, or its mean, with which a call has one answer whatever its seed",
    )
    thinking.add_argument(
        "--advantage-guidance",
        type=float,
        metavar="W",
        help="for a checkpoint of syvla-ppo --objective recap: how far to move from its average towards good actions, above 1; "
        "by default 1, the indicator in its prompt alone",
    )
    thinking.add_argument(
        "--remember",
        action="store_true",
        help="for one robot: begin from the last thought and prompt of the same instruction; less time, the same answers up to "
        "rounding; not with --compile",
    )
    thinking.add_argument("--compile", action="store_true", help="torch.compile; the start takes longer")
    thinking.add_argument(
        "--pack-weights",
        action="store_true",
        help="on a CPU: keep the weights in oneDNN's own layout, which is quicker",
    )
    thinking.add_argument("--async", dest="dual_system", action="store_true", help="let the VLM run in the background")
    thinking.add_argument(
        "--max-query-age",
        type=float,
        metavar="S",
        help="with --async: wait for newer query states than these; by default 10, inf: act on any",
    )


def _add_load(parser: argparse.ArgumentParser, default: ServerSettings) -> None:
    load = parser.add_argument_group("load")
    load.add_argument("--max-batch-size", type=int, default=default.max_batch_size, help="requests answered at once")
    load.add_argument("--max-wait-ms", type=float, default=default.max_wait_ms, help="wait for further requests")
    load.add_argument("--queue-size", type=int, default=default.queue_size, help="requests that may wait")
    load.add_argument("--deadline-s", type=float, default=default.deadline_s, help="drop requests that waited longer")
    load.add_argument(
        "--read-timeout-s", type=float, default=default.read_timeout_s, help="a message that began must end within"
    )
    load.add_argument("--max-connections", type=int, default=default.max_connections, help="open connections")
    load.add_argument(
        "--max-message-mb", type=float, default=default.limits.max_message_bytes / 2**20, help="largest message, MiB"
    )
    load.add_argument(
        "--max-memory-mb",
        type=float,
        default=default.max_memory_bytes / 2**20,
        help="what the requests of all clients may hold at once, MiB; beyond it 503",
    )


def settings_of(arguments: argparse.Namespace) -> ServerSettings:
    """The settings that a command line asks for.

    Raises:
        ValueError: An impossible value, or an address that needs a token.
    """
    default = ServerSettings()
    message = int(arguments.max_message_mb * 2**20)
    limits = CodecLimits(max_message_bytes=message, max_array_bytes=min(message, default.limits.max_array_bytes))
    cap = max(default.caps.max_new_tokens, arguments.max_new_tokens or 0)
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        token=None if arguments.token_file is None else read_token(arguments.token_file),
        allowed_hosts=tuple(arguments.allowed_hosts),
        insecure=arguments.insecure,
        dialects=tuple(arguments.dialect or default.dialects),
        cameras=dict(_camera(text) for text in arguments.camera),
        embodiment=arguments.embodiment,
        think=_think(arguments.think),
        max_batch_size=arguments.max_batch_size,
        max_wait_ms=arguments.max_wait_ms,
        queue_size=arguments.queue_size,
        deadline_s=arguments.deadline_s,
        read_timeout_s=arguments.read_timeout_s,
        max_connections=arguments.max_connections,
        max_memory_bytes=int(arguments.max_memory_mb * 2**20),
        limits=limits,
        caps=OptionCaps(max_new_tokens=cap, deadline_s=max(default.caps.deadline_s, arguments.deadline_s)),
        action_limits={} if arguments.limits is None else load_limits(arguments.limits),
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
    )


def _think(text: str) -> bool | int:
    if text in ("on", "off"):
        return text == "on"
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise ValueError(f"think: expected on, off or a number of calls, got {text!r}")


def _camera(text: str) -> tuple[str, str]:
    view, separator, camera = text.partition("=")
    if not (view and separator and camera):
        raise ValueError(f"camera: expected VIEW=CAMERA, got {text!r}")
    return view, camera


def _policy_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "compile": arguments.compile,
        "pack_weights": arguments.pack_weights,
        "max_new_tokens": arguments.max_new_tokens,
        "num_steps": arguments.num_steps,
        "noise": arguments.noise,
        "advantage_guidance": arguments.advantage_guidance,
        "remember": arguments.remember,
    }


def _server(arguments: argparse.Namespace, settings: ServerSettings) -> PolicyServer:
    """A server for a checkpoint."""
    from .policy_server import PolicyServer

    if arguments.model is None:
        raise ValueError("model: expected a checkpoint folder or Hub id (--model), or a run (--rl-run)")
    if arguments.dual_system and settings.think > 1:
        raise ValueError(
            f"think: expected on or off with --async, whose VLM thinks at every run or never, got {settings.think}"
        )
    options: dict[str, Any] = {}
    if arguments.max_query_age is not None:
        if not arguments.dual_system:
            raise ValueError("--max-query-age: only with --async; without it every call has query states of its own")
        options["max_query_age"] = arguments.max_query_age
    return PolicyServer.from_pretrained(
        arguments.model,
        settings,
        record=arguments.record,
        revision=arguments.revision,
        dual_system=arguments.dual_system,
        background_think=arguments.dual_system and bool(settings.think),
        **_policy_options(arguments),
        **options,
    )


def _rl_server(arguments: argparse.Namespace, settings: ServerSettings) -> PolicyServer:
    """A server for a run of reinforcement learning."""
    from .contract.requests import PolicyBackend
    from .policy_server import PolicyServer
    from .rl.scheduler import RLScheduler, RLSettings

    for name, value in (
        ("--model", arguments.model),
        ("--revision", arguments.revision),
        ("--record", arguments.record),
    ):
        if value is not None:
            raise ValueError(f"{name}: not with --rl-run, whose policies and rollouts lie in {arguments.rl_run}")
    if arguments.dual_system:
        raise ValueError("--async: not with --rl-run; a chunk is scored on the query states of its own observation")
    run = RLSettings(
        arguments.rl_run,
        rollouts_per_update=arguments.rl_rollouts,
        max_updates=arguments.rl_updates,
        ahead=arguments.rl_ahead,
        graded_rewards=arguments.rl_graded_rewards,
        silent_s=arguments.rl_silent_s,
    )

    def load(folder: Path) -> PolicyBackend:
        from .contract.rollout_sampler import read_sampler
        from .policies.backend import SyVLABackend

        chosen = None if settings.embodiment is None else [settings.embodiment]
        sampler = read_sampler(folder)
        options = _policy_options(arguments)
        return SyVLABackend.from_pretrained(str(folder), embodiments=chosen, sampler=sampler, **options)

    return PolicyServer(None, settings, rl=RLScheduler(run, load))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `syvla-serve`; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.INFO if arguments.verbose else logging.WARNING)
    try:
        settings = settings_of(arguments)
        server = _rl_server(arguments, settings) if arguments.rl_run is not None else _server(arguments, settings)
        server.run()
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(error_text("syvla-serve", error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
