"""Evaluation through our own server gives what evaluation in process gives, for the same seeds."""

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the server needs: pip install 'syvla[serve]'")

from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.environments import make_environment
from syvla.evaluation.policy import load_policy
from syvla.evaluation.remote_policy import RemotePolicy
from syvla.serving import PolicyServer
from syvla.serving.server.settings import ServerSettings

THINKING = {"think": True, "max_new_tokens": 6, "num_steps": 3}
OPTIONS = {"episodes": 3, "environment_options": {"max_steps": 14, "image_size": 16}, "progress": False}


@pytest.fixture(scope="module")
def url(checkpoint):
    server = PolicyServer.from_pretrained(checkpoint, ServerSettings(port=0, think=True), device="cpu").start(60)
    yield f"ws://127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.parametrize("options", [{}, THINKING])
def test_actions_are_those_of_the_policy_in_process_to_the_bit(url, checkpoint, options):
    """Without options too: the server's own habit to think must not count."""
    environment = make_environment("tabletop", "lift", image_size=16)
    local = load_policy(checkpoint, environment, device="cpu", **options)
    remote = RemotePolicy(url, environment, **options)
    assert remote.chunk_size == local.chunk_size
    for seed in (7, 8):
        observation, info = environment.reset(seed=seed)
        question = ([observation], [info["instruction"]])
        here, there = (policy.predict(*question, seeds=[seed]) for policy in (local, remote))
        assert np.array_equal(here.actions, there.actions)
        assert here.thoughts == there.thoughts
    remote.close()


def test_evaluations_are_identical(url, checkpoint):
    runs = []
    for policy, further in ((checkpoint, {"device": "cpu"}), (url, {}), (url, {"connections": 3})):
        result = evaluate_closed_loop(policy, "tabletop", "lift", policy_options={**THINKING, **further}, **OPTIONS)
        runs.append([(r.seed, r.outcome, r.steps, r.policy_calls, r.thoughts) for r in result.records])
    assert runs[0] == runs[1] == runs[2]
    assert len({text for *_, thoughts in runs[0] for _, text in thoughts}) > 2, (
        "thoughts should tell the episodes apart"
    )


def test_who_the_policy_is_follows_from_the_servers_version(url):
    environment = make_environment("tabletop", "lift")
    plain, again, thinking = (RemotePolicy(url, environment, **options) for options in ({}, {}, THINKING))
    assert plain.identity() == again.identity() != thinking.identity()
    assert plain.identity()["policy_version"] == plain.metadata["policy_version"]
    assert "url" not in plain.identity()


def test_a_robot_that_the_server_does_not_know_is_named(url):
    environment = make_environment("tabletop", "lift")
    environment.embodiment = "cobot"
    with pytest.raises(ValueError, match=r"expected a policy for 'cobot', got one for \['tabletop'\]"):
        RemotePolicy(url, environment)


def test_the_servers_refusal_is_shown_as_it_came(url):
    with pytest.raises(RuntimeError, match=r"num_steps: expected an integer from 1 to 50, got 99"):
        evaluate_closed_loop(url, "tabletop", "lift", policy_options={"num_steps": 99}, **OPTIONS)
