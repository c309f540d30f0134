"""`python -m lerobot_policy_server --policy FOLDER`: serves a LeRobot policy."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import torch

from .policy import ServedPolicy
from .server import WebsocketPolicyServer


def rename(text: str) -> tuple[str, str]:
    """`KEY=OTHER` as a pair."""
    key, separator, other = text.partition("=")
    if not key or not other or not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=OTHER, got {text!r}")
    return key, other


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_server", description=__doc__)
    parser.add_argument("--policy", required=True, help="folder of a LeRobot checkpoint, or Hub id")
    parser.add_argument("--revision", help="of the Hub id")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; there is no access control")
    parser.add_argument("--port", type=int, default=8000, help="where to listen")
    parser.add_argument(
        "--rename",
        type=rename,
        action="append",
        default=[],
        metavar="KEY=OTHER",
        help="key of a request, and the key that the policy expects, such as "
        "observation.images.agentview=observation.images.image; repeatable",
    )
    parser.add_argument(
        "--repeat-observation",
        action="store_true",
        help="give a policy that wants several observations the present one several times",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    torch.manual_seed(arguments.seed)
    try:
        policy = ServedPolicy(
            arguments.policy,
            arguments.device,
            revision=arguments.revision,
            rename=dict(arguments.rename),
            repeat_observation=arguments.repeat_observation,
        )
        server = WebsocketPolicyServer(policy, arguments.host, arguments.port)
    except (OSError, ValueError, ImportError) as error:
        print(f"lerobot_policy_server: {error}", file=sys.stderr)
        return 1
    print(f"{policy.config.type} at {server.url}; it asks for {', '.join(policy.cameras()) or 'no images'}", flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
