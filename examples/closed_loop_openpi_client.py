"""A closed-loop run of the demo's environment through the policy server, with openpi's own client, unmodified.

    syvla-serve --model outputs/demo/checkpoint &
    python examples/closed_loop_openpi_client.py --episodes 10

Needs `pip install openpi-client` (with --no-deps beside numpy 2) and the extra `sim`. Any client of openpi's protocol is
connected in the same way: the first frame holds the server's metadata, a request is a flat dictionary.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from syvla.evaluation.closed_loop import evaluation_seeds
from syvla.evaluation.environments import make_environment


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--token", help="the server's, if it wants one")
    parser.add_argument("--task", default="lift")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--max-steps", type=int, help="control steps per episode; by default the environment's")
    parser.add_argument("--replan-steps", type=int, default=4, help="actions executed of each chunk")
    options = parser.parse_args(argv)

    connection = WebsocketClientPolicy(options.host, options.port, api_key=options.token)
    print(f"connected to policy {connection.get_server_metadata().get('policy_version')}")
    policy = ActionChunkBroker(connection, action_horizon=options.replan_steps)
    limit = {} if options.max_steps is None else {"max_steps": options.max_steps}
    environment = make_environment("tabletop", options.task, **limit)
    solved = 0
    for seed in evaluation_seeds(0, options.episodes):
        observation, info = environment.reset(seed=seed)
        policy.reset()  # forgets the rest of the chunk; the server learns of the new episode by `reset`
        first, done = True, False
        while not done:
            images = observation["images"]
            request: dict[str, Any] = {
                f"observation.images.{view}": np.asarray(images[camera])
                for view, camera in environment.view_cameras.items()
            }
            request |= {"observation.state": observation["state"], "prompt": info["instruction"], "reset": first}
            action = policy.infer(request)["actions"]
            observation, _, terminated, truncated, info = environment.step(action)
            first, done = False, terminated or truncated
        solved += bool(info["success"])
        print(f"seed {seed}: {'success' if info['success'] else 'failure'}")
    environment.close()
    print(f"{solved} of {options.episodes} episodes solved")


if __name__ == "__main__":
    main()
