"""Policies behind a server: any that speaks openpi's protocol, with nothing of ours; errors as they come; no torch."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reach_environment
from reach_environment import ReachEnvironment

pytest.importorskip("openpi_client", reason="openpi-client is not installed; scripts/install_test_peers.sh brings it")
from openpi_server import DIALECT, OpenpiServer

from syvla.evaluation import closed_loop
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.remote_policy import RemotePolicy

ROOT = Path(__file__).resolve().parents[2]
reach_environment.register()


@pytest.fixture
def dialect(tmp_path):
    path = tmp_path / "reach.yaml"
    path.write_text(DIALECT)
    return str(path)


def evaluate(server, dialect, **arguments):
    policy_options = {"dialect": dialect, "timeout": 10.0, **arguments.pop("policy_options", {})}
    options = {"episodes": 3, "progress": False, "policy_options": policy_options, **arguments}
    return evaluate_closed_loop(server.url, "reach", "near", **options)


@pytest.mark.parametrize(("connections", "workers"), [(1, 1), (3, 2)])
def test_a_foreign_policy_is_evaluated_like_any_other(dialect, connections, workers):
    """The server refuses whatever its own clients would not send; the chunk length comes from its first reply."""
    with OpenpiServer() as server:
        result = evaluate(server, dialect, policy_options={"connections": connections}, workers=workers)
    assert (result.total.successes, result.total.episodes) == (3, 3)
    assert result.settings["replan_steps"] == 5
    assert all(record.policy_calls == -(-record.steps // 5) for record in result.records)
    assert len(server.requests) == 1 + sum(record.policy_calls for record in result.records)
    assert {request["prompt"] for request in server.requests} == {"reach the near goal"}
    assert server.requests[0]["observation/image"].shape == (8, 8, 3)
    assert all(record.thoughts == [] for record in result.records)


def test_a_dialect_brings_the_replan_steps_of_its_client_and_the_prompt_may_be_replaced(dialect, tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(DIALECT + "\nreplan_steps: 2\n")
    with OpenpiServer() as server:
        result = evaluate(server, str(path), policy_options={"prompt": "go there"})
        assert {request["prompt"] for request in server.requests} == {"go there"}
        asked = evaluate(server, str(path), replan_steps=4)
    assert result.settings["replan_steps"] == 2
    assert result.settings["prompt"] == "go there"
    assert all(record.policy_calls == -(-record.steps // 2) for record in result.records)
    assert asked.settings["replan_steps"] == 4
    assert "prompt" not in asked.settings


def test_the_chunk_length_may_stand_in_the_metadata(dialect):
    with OpenpiServer({"action_horizon": 5}) as server:
        http = server.url.replace("ws://", "http://")
        assert RemotePolicy(http, ReachEnvironment(), dialect=dialect).chunk_size == 5
        assert server.requests == [], "nothing had to be asked"
        result = evaluate(server, dialect, replan_steps=2)
    assert all(record.policy_calls == -(-record.steps // 2) for record in result.records)


def test_a_shorter_chunk_than_before_is_refused(dialect):
    with OpenpiServer() as server:
        server.lengths = [5, 3]
        with pytest.raises(ValueError, match="expected chunks of 5 actions as before, got one of 3"):
            evaluate(server, dialect)


def test_who_a_policy_is_follows_from_its_version_or_from_address_and_metadata(dialect):
    def identity(server, **options):
        return RemotePolicy(server.url, ReachEnvironment(), dialect=dialect, **options).identity()

    with OpenpiServer() as one, OpenpiServer() as other, OpenpiServer({"reset_pose": np.zeros(3)}) as third:
        assert identity(one) == identity(one)
        assert len({json.dumps(identity(server)) for server in (one, other, third)}) == 3
    with OpenpiServer() as one:
        before = identity(one)
        Path(dialect).write_text(DIALECT + "# observations may now be written in another way\n")
        assert identity(one) != before
    with OpenpiServer({"policy_version": "a"}) as one, OpenpiServer({"policy_version": "a"}) as moved:
        assert identity(one) == identity(moved), "the same policy elsewhere"


def test_latency_is_that_of_each_request(dialect):
    """Three requests of one batch, one after another, take 0.5 s each, not 1.5."""
    with OpenpiServer(seconds=0.5) as server:
        result = evaluate(server, dialect, environment_options={"max_steps": 5})
    assert 0.5 <= result.to_dict()["latency"]["p50"] < 1.4


def test_an_interrupted_remote_evaluation_asks_only_for_the_rest(dialect, tmp_path):
    with OpenpiServer() as server:
        evaluate(server, dialect, episodes=2, output=tmp_path)
        before = len(server.requests)
        result = evaluate(server, dialect, episodes=3, output=tmp_path)
        assert len(server.requests) - before == 1 + result.records[2].policy_calls


def test_the_servers_error_is_shown_as_it_came(tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(DIALECT.replace("observation/goal", "observation/target"))
    arguments = ["--env", "reach", "--task", "near", "--output", str(tmp_path), "--dialect", str(wrong), "--quiet"]
    with OpenpiServer() as server:
        assert closed_loop.main([*arguments, "--server", server.url]) == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "unexpected observation keys" in message
    assert "observation/target" in message


def test_actions_for_another_robot_are_refused(dialect):
    with OpenpiServer(width=7) as server, pytest.raises(ValueError, match="2 dimensions, which are dx, dy; got 7"):
        evaluate(server, dialect)


@pytest.mark.parametrize("option", [{"think": True}, {"max_new_tokens": 4}, {"num_steps": 4}])
def test_options_of_our_server_are_refused_for_others(dialect, option):
    with OpenpiServer() as server, pytest.raises(ValueError, match=rf"no SyVLA server.*{next(iter(option))}"):
        evaluate(server, dialect, policy_options=option)


def test_a_server_that_is_not_there_is_named_in_time(tmp_path, capsys):
    """Nobody listens; somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        free = socket.create_server(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        for number in (port, silent.getsockname()[1]):
            url = f"ws://127.0.0.1:{number}"
            arguments = ["--server", url, "--env", "reach", "--task", "near", "--output", str(tmp_path), "--quiet"]
            began = time.monotonic()
            assert closed_loop.main([*arguments, "--timeout", "3"]) == 1
            assert time.monotonic() - began < 20, "3 s, and some for a busy machine, but not the 60 s of the default"
            assert url in capsys.readouterr().err


def test_a_server_that_goes_away_ends_the_evaluation_with_its_address(dialect):
    with OpenpiServer() as server:
        policy = RemotePolicy(server.url, ReachEnvironment(), dialect=dialect, timeout=2.0)
    with pytest.raises(ConnectionError, match=server.url):
        evaluate_closed_loop(policy, "reach", "near", episodes=1, progress=False)


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_evaluation_through_a_server_needs_no_torch(dialect, tmp_path):
    """In this process and in worker processes: both refuse to import it."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    script = "import sys, reach_environment\nfrom syvla.evaluation import closed_loop\n"
    script += (
        "if __name__ == '__main__':\n    reach_environment.register()\n    sys.exit(closed_loop.main(sys.argv[1:]))"
    )
    paths = [str(tmp_path), str(ROOT), str(ROOT / "tests" / "support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    blocked = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert blocked.returncode != 0, "the import hook does not work"
    with OpenpiServer() as server:
        arguments = [
            "--server",
            server.url.removeprefix("ws://"),
            "--dialect",
            dialect,
            "--env",
            "reach",
            "--task",
            "near",
            "--quiet",
        ]
        arguments += ["--episodes", "4", "--workers", "2", "--output", str(tmp_path / "results")]
        run = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
        )
    assert run.returncode == 0, run.stderr
    assert "near: 4/4" in run.stdout
