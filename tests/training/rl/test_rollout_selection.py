"""Which rollouts train: sealed, labeled, of this run's policies, not too old, and each one once."""

import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from syvla.processing import RobotDataset
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler
from syvla.serving.recording.decision import Decision
from syvla.serving.recording.episode_facts import EpisodeFacts
from syvla.serving.recording.recorder import RolloutRecorder
from syvla.serving.rl.ledger import CLAIMED, DISCARDED, SEALED, SET_ASIDE, Ledger, LedgerEntry, RunLedger
from syvla.serving.rl.published_policies import DamagedPolicy, read_latest
from syvla.training.rl.policy_publisher import FolderPublisher
from syvla.training.rl.rollout_selection import RolloutSelection, choose_rollouts, family_problem
from syvla.training.rl.rollout_store import LeRobotRolloutStore
from syvla.training.rl.run_state import RLState, staleness


def decision(seed, version="v0", **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "images": {"head": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)},
        "state": rng.normal(size=3).astype(np.float32),
        "instruction": "reach",
        "embodiment": "arm",
        "chunk": rng.normal(size=(5, 2)).astype(np.float32),
        "seed": seed,
        "policy_version": version,
    }
    return Decision(**{**fields, **changes})


@pytest.fixture
def store(tmp_path):
    """Episodes: a success, an unlabeled one, a failure, one whose weights were swapped on the way."""
    recorder = RolloutRecorder(tmp_path / "rollouts", fps=10, embodiment="arm")
    for number, (outcome, versions) in enumerate([(1, "aa"), (None, "aa"), (0, "bb"), (1, "ab")]):
        for step, version in enumerate(versions):
            recorder.record(
                "robot",
                decision(10 * number + step, version, frozen_steps=step),
                episode_id=f"episode {number}",
                executed_before=step * 3 or None,
            )
        recorder.end("robot", executed=0 if number == 3 else 2, outcome=outcome)
    recorder.close()
    return LeRobotRolloutStore(tmp_path / "rollouts")


def info(name, *versions):
    return EpisodeFacts(name, "robot", "arm", outcome=1, policy_versions=versions)


def test_only_labeled_episodes_are_offered(store):
    found = store.labeled()
    assert [(i.episode_id, i.outcome, i.policy_versions) for i in found] == [
        ("episode 0", 1, ("a",)),
        ("episode 2", 0, ("b",)),
        ("episode 3", 1, ("a", "b")),
    ]
    assert LeRobotRolloutStore(store.root / "none").labeled() == []


def test_decisions_are_those_that_were_served(store):
    rollouts = store.load(["episode 3", "episode 0"])
    assert [r.facts.episode_id for r in rollouts] == ["episode 3", "episode 0"]
    for number, rollout in ((3, rollouts[0]), (0, rollouts[1])):
        assert len(rollout.decisions) == 2
        for step, found in enumerate(rollout.decisions):
            served = decision(10 * number + step)
            np.testing.assert_array_equal(found.chunk, served.chunk)
            np.testing.assert_array_equal(found.state, served.state)
            np.testing.assert_array_equal(found.images["center"], served.images["head"])
            assert (found.instruction, found.embodiment) == ("reach", "arm")
    first, last = rollouts[0].decisions
    assert first.valid.tolist() == [True, True, True, False, False], "three actions ran"
    assert not last.valid.any(), "none ran"
    assert rollouts[1].decisions[1].valid.tolist() == [False, True, False, False, False], "one carried over, two ran"
    item = first.item()
    assert item["action_is_pad"].tolist() == [False, False, False, True, True]
    np.testing.assert_array_equal(rollouts[1].final.images["center"], decision(1).images["head"])


def test_an_episode_that_is_not_there_is_named(store):
    with pytest.raises(ValueError, match=r"no labeled episodes \['episode 1'\]"):
        store.load(["episode 0", "episode 1"])


def test_the_recording_reads_as_a_data_set(store):
    assert RobotDataset(store.root, embodiment="arm").num_episodes == 4


def test_staleness_counts_published_versions():
    versions = ["a", "b", "c"]
    assert [staleness(versions, (v,)) for v in versions] == [2, 1, 0]
    assert staleness(versions, ("c", "a")) == 2, "the oldest counts"
    assert staleness(versions, ("x",)) is None
    assert staleness(versions, ()) is None
    assert staleness(["a", "b", "a"], ("a",)) == 0, "the same weights again"


LABELED = [info("1", "b"), info("2", "a"), info("3", "a"), info("4", "b"), info("5", "a", "b"), info("6", "b")]


def test_each_rollout_trains_once_and_stale_ones_never():
    state = RLState(versions=["a", "b"], consumed=["1"], updates=1)
    known = RunLedger(rollouts={"2": LedgerEntry(DISCARDED)})
    chosen, unusable = choose_rollouts(LABELED, known, state, 20, 0)
    assert (chosen, list(unusable)) == (["4", "6"], ["3", "5"])
    assert all(why.startswith("too old: 1 version(s) behind, max_staleness is 0") for why in unusable.values())
    assert choose_rollouts(LABELED, known, state, 1, 0)[0] == ["4"]
    assert choose_rollouts(LABELED, known, state, 20, 1) == (["3", "4", "5", "6"], {})


def test_what_was_set_aside_can_be_used_after_all():
    """By a larger `max_staleness`, or by a person's word; a reason that still holds is not told twice."""
    state = RLState(versions=["a", "b"], updates=1)
    _, unusable = choose_rollouts(LABELED[2:3], RunLedger(), state, 20, 0)
    aside = RunLedger(rollouts={"3": LedgerEntry(SET_ASIDE, why=unusable["3"])})
    assert choose_rollouts(LABELED[2:3], aside, state, 20, 0) == ([], {})
    assert choose_rollouts(LABELED[2:3], aside, state, 20, 1) == (["3"], {})
    restored = RunLedger(rollouts={"3": LedgerEntry(SEALED, reward=1, accepted=True)})
    assert choose_rollouts(LABELED[2:3], restored, state, 20, 0) == (["3"], {})


def test_an_update_takes_its_own_claims_again_and_nobody_elses():
    state = RLState(versions=["a", "b"], updates=2)
    known = RunLedger(rollouts={"4": LedgerEntry(CLAIMED, update=2), "6": LedgerEntry(CLAIMED, update=3)})
    assert choose_rollouts([LABELED[3], LABELED[5]], known, state, 20, 0) == (["4"], {})


def test_rollouts_of_foreign_and_of_left_policies_are_set_aside_with_the_reason():
    state = RLState(versions=["a", "b", "c"], lineage=[0, 2])
    labeled = [info("7", "x"), info("8", "b"), info("9", "c")]
    chosen, unusable = choose_rollouts(labeled, RunLedger(), state, 20, 5)
    assert chosen == ["9"]
    assert unusable["7"].startswith("foreign: made by policies ['x'], which this run never published")
    assert unusable["8"].startswith("rolled back: its policy is not in the line of the present one; restore")


def test_a_look_claims_what_fits_and_sets_the_rest_aside(store, tmp_path):
    """One foreign rollout costs itself alone."""
    ledger, state = Ledger(tmp_path / "run"), RLState(versions=["a", "b"])
    args = SimpleNamespace(rollouts_per_update=1, max_staleness=1, accepted_staleness=1)
    processor = SimpleNamespace(embodiments={"arm": {"action_dim": 2}}, chunk_size=5)

    def look(tasks):
        return RolloutSelection(
            store, ledger, state, args, lambda rollout: family_problem(rollout, processor, None, tasks)
        ).look()

    found = look(("push",))
    assert found.chosen == []
    assert "no demonstrations of its task 'reach', only of ['push']" in found.unusable["episode 0"]
    assert len(found.unusable) == len(ledger.read().names(SET_ASIDE)) == 3
    for name in found.unusable:
        ledger.write("restore", episode_id=name)
    assert look(("reach",)).chosen == ["episode 0"]
    assert ledger.read().rollouts["episode 0"].state == CLAIMED
    ledger.announce(0, "a")
    ledger.write("rollback", version=0, policy_version="a")
    assert look(None).rolled_back


def test_a_policy_is_published_whole_once_and_old_ones_go(tmp_path):
    publisher, calls = FolderPublisher(tmp_path / "policies", keep=2), []

    def save(folder):
        calls.append(folder)
        (folder / "model.safetensors").write_bytes(b"weights" * len(calls))

    (tmp_path / "policies" / ".publishing" / "v0000").mkdir(parents=True)
    (tmp_path / "policies" / ".publishing" / "v0000" / "half").touch()
    for version in (0, 1, 1, 2):
        publisher.publish(version, f"hash {version}", save)
    assert len(calls) == 3, "the repetition changed nothing"
    latest = publisher.latest()
    assert (latest["version"], latest["policy_version"], latest["path"]) == (2, "hash 2", "v0002")
    data = (tmp_path / "policies" / "v0002" / "model.safetensors").read_bytes()
    sealed = json.loads((tmp_path / "policies" / "v0002" / "POLICY.json").read_text())
    assert sealed["files"] == {"model.safetensors": [len(data), hashlib.sha256(data).hexdigest()]}
    assert sorted(p.name for p in (tmp_path / "policies").iterdir()) == ["LATEST.json", "v0001", "v0002"]

    def fail(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publisher.publish(3, "hash 3", fail)
    assert publisher.latest() == latest
    assert not (tmp_path / "policies" / "v0003").exists()
    weights = tmp_path / "policies" / "v0002" / "model.safetensors"
    weights.write_bytes(data[:5])
    publisher.publish(2, "hash 2", save)
    assert len(weights.read_bytes()) > 5, "a damaged policy is published anew"
    read_latest(tmp_path / "policies").verify()
    assert publisher.go_back(1, "hash 1") == tmp_path / "policies" / "v0001"
    assert publisher.latest()["version"] == 1
    publisher.left = {2}
    publisher.publish(3, "hash 3", save)
    assert sorted(p.name for p in (tmp_path / "policies").glob("v*")) == ["v0001", "v0003"], "its parent is kept"
    with pytest.raises(DamagedPolicy, match="has no whole policy v0002"):
        publisher.go_back(2, "hash 2")


def test_state_survives_saving_and_guards_settings(tmp_path):
    state = RLState(versions=["a"], consumed=["1"], baseline_cfm=0.5, settings={"seed": 1}, history=[{"refused": None}])
    state.save(tmp_path)
    assert RLState.load(tmp_path) == state
    with pytest.raises(ValueError, match="settings changed: seed was 1, is 2"):
        state.require_settings({"seed": 2})
    with pytest.raises(ValueError, match="needs a checkpoint of syvla-ppo"):
        RLState.load(tmp_path / "other")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("reward", [2, -1, 1.5, "1", [1]])
def test_rewards_outside_of_zero_to_one_are_refused(store, reward):
    path = store.root / "meta" / "rollouts" / "episode-000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "outcome": reward}))
    with pytest.raises(ValueError, match=r"episode episode 2 has outcome .*, expected 0 to 1; label it anew"):
        store.labeled()


def test_rollouts_of_another_policy_family_do_not_fit(store):
    """Another robot, another length of chunks, another number of action dimensions."""
    (rollout,) = store.load(["episode 0"])
    known = {"arm": {"action_dim": 2}}
    assert family_problem(rollout, SimpleNamespace(embodiments=known, chunk_size=5), None) is None
    for embodiments, size in ((known, 8), ({"arm": {"action_dim": 3}}, 5), ({"hand": {"action_dim": 2}}, 5)):
        why = family_problem(rollout, SimpleNamespace(embodiments=embodiments, chunk_size=size), None)
        assert "robot 'arm' with chunks of shape (5, 2); this policy knows" in why


def test_flow_sde_wants_the_chain_of_its_own_sampler(store):
    processor = SimpleNamespace(embodiments={"arm": {"action_dim": 2}}, chunk_size=5)
    (rollout,), sampler = store.load(["episode 0"]), RolloutSampler(10, 0.5)
    assert "decision 0 holds no step of a stochastic sampler" in family_problem(rollout, processor, sampler)
    state = np.zeros((5, 2), np.float32)

    def sampled(settings):
        return replace(
            rollout, decisions=[replace(d, chain=ChainStep(state, state, 0, settings)) for d in rollout.decisions]
        )

    assert family_problem(sampled(sampler), processor, sampler) is None
    for other in (RolloutSampler(9, 0.5), RolloutSampler(10, 0.7)):
        assert "set flow_sde_noise_level" in family_problem(sampled(other), processor, sampler)


def test_a_decision_keeps_the_instruction_that_it_was_made_for(tmp_path):
    recorder = RolloutRecorder(tmp_path / "rollouts", fps=10, embodiment="arm")
    for number, text in enumerate(["reach", "return"]):
        recorder.record("robot", decision(number, instruction=text), episode_id="one")
    recorder.end("robot", outcome=1)
    recorder.close()
    (rollout,) = LeRobotRolloutStore(tmp_path / "rollouts").load(["one"])
    assert [d.instruction for d in rollout.decisions] == ["reach", "return"]
