"""Writes the OpenAPI document of the HTTP server, with the routes of a run: `python -m syvla.serving.openapi_document FILE`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .contract.requests import PolicyHolder
from .policy_server import build_app
from .rl.routes import rl_router
from .rl.scheduler import RLScheduler
from .server.act_service import ActService
from .server.settings import ServerSettings


def openapi_document() -> dict[str, Any]:
    """The document of a server that has all routes."""
    routes = rl_router(cast(RLScheduler, None))  # only its handlers ask for the run
    return build_app(ActService(ServerSettings(), PolicyHolder()), [routes]).openapi()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m syvla.serving.openapi_document",
        description="Write the OpenAPI document of the policy server, with the routes of a run of reinforcement learning.",
        epilog="example: python -m syvla.serving.openapi_document docs/openapi.json",
    )
    parser.add_argument("file", type=Path, help="where to write it, such as docs/openapi.json")
    path = parser.parse_args(argv).file
    path.write_text(json.dumps(openapi_document(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
