"""Rollouts that a simulated robot leaves without a label, because it was killed between the episode's end and the label."""

import numpy as np
import pytest

from syvla.serving.client.retries import ClientOptions, PolicyError
from syvla.serving.client.rl_client import RLClient
from syvla.serving.rl.ledger import ABORTED, AWAITING, CLAIMED, DISCARDED, SEALED, Ledger
from syvla.training.rl_run import discard_unlabeled


def roll_out(client):
    client.begin(wait_s=20)
    client.act({"center": np.zeros((8, 8, 3), np.uint8)}, np.zeros(2, np.float32), "lift")
    client.end(1)
    return client.episode_id


def test_a_trainer_that_needs_no_labels_keeps_what_it_took_and_a_late_label_is_noted(serve_run, run):
    server = serve_run(rollouts_per_update=2)
    client = RLClient(f"http://{server.url}", options=ClientOptions(retries=1, backoff=0.01))
    taken, waiting = roll_out(client), roll_out(client)
    Ledger(run).claim(0, [taken])
    with pytest.raises(PolicyError, match=f"episode {taken}: cannot be aborted; update 1 works on it"):
        client._post(f"/rl/episodes/{taken}/abort", {"reason": "enough"})
    client._post(f"/rl/episodes/{waiting}/abort", {"reason": "enough"})
    known = Ledger(run).read()
    assert (known.names(CLAIMED), known.names(ABORTED)) == ([taken], [waiting])
    client.reward(1, taken)
    assert Ledger(run).read().rollouts[taken].reward == 1
    assert Ledger(run).read().names(CLAIMED) == [taken]


def test_a_run_goes_on_after_its_robot_died_without_a_label(serve_run, run):
    """The trainer wants two rollouts: one waits for a label that never comes, so a third must be allowed."""
    server = serve_run(rollouts_per_update=2)
    url = f"http://{server.url}"
    client = RLClient(url, options=ClientOptions(retries=1, backoff=0.01))
    orphan, labeled = roll_out(client), roll_out(client)
    client.reward(1)
    assert Ledger(run).read().names(AWAITING) == [orphan]
    with pytest.raises(TimeoutError, match="has its 2 rollouts, of which 1 wait for a reward"):
        client.begin(wait_s=0.1)
    discard_unlabeled(url, run)
    known = Ledger(run).read()
    assert known.names(AWAITING) == []
    assert known.names(DISCARDED) == [orphan]
    assert known.names(SEALED) == [labeled], "a label is never taken back"
    assert "before it labeled" in known.rollouts[orphan].why
    client.reward(0, roll_out(client))
    assert len(Ledger(run).read().names(SEALED)) == 2
