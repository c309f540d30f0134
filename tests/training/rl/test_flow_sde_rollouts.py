"""Rollouts for `flow_sde` from end to end: the server samples and records the chain, the store reads it, PPO trains on it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoProcessor

pytest.importorskip("faiss", reason="FAISS (extra rl) is not installed")

from syvla.serving.client.retries import PolicyError
from syvla.serving.client.rl_client import RLClient
from syvla.serving.contract.rollout_sampler import SAMPLER_FILE, RolloutSampler
from syvla.serving.policies.backend import sample_rollout
from syvla.serving.policies.in_process import SyVLAPolicy
from syvla.serving.recording.reader import read_rollouts
from syvla.serving.serve_command import _rl_server, build_parser, settings_of
from syvla.training.ppo import main
from syvla.training.rl.rollout_store import LeRobotRolloutStore
from syvla.training.rl.update_preparation import UpdatePreparation

PROMPT, STATE = "lift the red cube", np.linspace(-1, 1, 14, dtype=np.float32)
VIEWS = ("center", "left_wrist", "right_wrist")
SEEDS = [0, 1, 10, 11, 20, 21, 30, 31]
EXECUTED = 5


def images(seed):
    rng = np.random.default_rng(seed)
    return {view: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for view in VIEWS}


def kick(seed):
    """The noise of the stochastic step, drawn after the flow's initial noise; (T, D)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, 8, 14), generator=generator)[1].numpy()


@pytest.fixture(scope="module")
def options(rl_options, rl_policy, tmp_path_factory):
    """Of a run whose rollouts come from its own server. The policy's thoughts are digits, which read back as the same
    tokens; so the chunk is scored on exactly what the policy saw."""
    policy = shutil.copytree(rl_policy, tmp_path_factory.mktemp("thinking") / "policy")
    allowed = set(AutoProcessor.from_pretrained(policy).tokenizer.convert_tokens_to_ids([*"0123456789"]))
    generation = json.loads((policy / "generation_config.json").read_text())
    generation["suppress_tokens"] = [token for token in range(512) if token not in allowed]
    (policy / "generation_config.json").write_text(json.dumps(generation))
    left_out = ("rollouts_path", "rollout_cameras")
    kept = {name: value for name, value in rl_options.items() if name not in left_out}
    return {**kept, "model_path": policy, "ratio_method": "flow_sde", "max_rl_updates": 1}


def train(options, output, **more):
    chosen = {**options, "output_dir": output, **more}
    return main([text for name, value in chosen.items() for text in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def served(tmp_path_factory, options):
    """(folder of a run whose server answered four episodes, half of them thinking; its replies by seed)."""
    run = tmp_path_factory.mktemp("run")
    assert train(options, run) == 0, "publishes the first policy, and finds no rollouts"
    texts = ["--rl-run", run, "--port", 0, "--rl-rollouts", 4, "--device", "cpu", "--max-new-tokens", 6]
    arguments = build_parser().parse_args([str(text) for text in texts])
    replies = {}
    with _rl_server(arguments, settings_of(arguments)).start(120) as server:
        client = RLClient(f"http://{server.url}")
        for episode in range(4):
            client.begin()
            for seed in SEEDS[2 * episode : 2 * episode + 2]:
                said = {"executed_steps": EXECUTED} if seed % 10 else {}
                replies[seed] = client.act(images(seed), STATE, PROMPT, seed=seed, think=bool(episode % 2), **said)
            if episode == 0:
                for extra in ({"num_steps": 3}, {"prev_chunk": replies[0]["actions"]}):
                    with pytest.raises(PolicyError, match=f"{next(iter(extra))}: .*this run"):
                        client.act(images(1), STATE, PROMPT, seed=1, **extra)
            client.end(EXECUTED, timed_out=episode == 2)
            client.reward(episode % 2)
        replies["again"] = RLClient(f"http://{server.url}").act(images(0), STATE, PROMPT, seed=0)
    return run, replies


def test_episodes_are_sampled_and_all_other_requests_are_denoised(served):
    """Outside of episodes the server gives the deterministic flow's chunk, bit for bit; in them the seed decides."""
    run, replies = served
    policy = SyVLAPolicy.from_pretrained(
        str(run / "policies" / "v0000"), "two_arms", {view: view for view in VIEWS}, device="cpu"
    )
    observation = {"images": images(0), "state": STATE}
    plain = policy.predict([observation], [PROMPT], seeds=[0]).actions[0]
    np.testing.assert_array_equal(replies["again"]["actions"], plain)
    inputs = policy.inputs([observation["images"]], [STATE], [PROMPT])
    intention = policy.intention(inputs)
    sampler = RolloutSampler(10, 0.5)
    chunks = [sample_rollout(policy, inputs, intention, seeds=[0], sampler=sampler)[0][0] for _ in range(2)]
    np.testing.assert_array_equal(replies[0]["actions"], chunks[0])
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert np.abs(chunks[0] - plain).max() > 0.1
    assert json.loads((run / "policies" / "v0000" / SAMPLER_FILE).read_text())["noise_level"] == 0.5
    assert SAMPLER_FILE in json.loads((run / "policies" / "v0000" / "POLICY.json").read_text())["files"]


def test_the_recorded_step_is_the_one_that_was_drawn(served):
    """Sealed with the episode, and equal to mean + std * noise of the seed for the velocity that the two states imply."""
    run, replies = served
    (folder,) = {path for path in (run / "rollouts").glob("[!.]*") if _seeds(path) == SEEDS[:2]}
    assert any(name.endswith(".parquet") for name in json.loads((folder / "seal.json").read_text())["files"])
    (episode,) = read_rollouts(folder)
    chains = [decision.chain for decision in episode.decisions]
    for chain, seed in zip(chains, SEEDS[:2], strict=True):
        generator = torch.Generator().manual_seed(seed)
        torch.randn((2, 8, 14), generator=generator)
        assert chain.step == int(torch.randint(10, (), generator=generator))
        assert chain.sampler == RolloutSampler(10, 0.5)
        assert chain.before.dtype == np.float32
        assert chain.before.shape == (8, 14)
    assert replies[10]["thought"].isdigit()
    assert not replies[0]["thought"]


def _seeds(folder):
    return [decision.seed for decision in read_rollouts(folder)[0].decisions]


def first_log(folder):
    return next(entry for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry)


def test_served_rollouts_train_and_their_ratio_is_one_before_the_first_step(served, options, tmp_path):
    """And their old score is the log-density of the noise that was drawn: the trainer sees the policy that acted, with and
    without thoughts, over HTTP, disk and a fresh load of the checkpoint. A resumed update ends as the unbroken one."""
    run, _ = served
    more = {"rollouts_path": run / "rollouts", "save_strategy": "steps", "save_steps": 1, "intention_decoupling": False}
    assert train(options, tmp_path / "whole", **more) == 0
    log = [entry for entry in json.loads((tmp_path / "whole" / "log_history.json").read_text()) if "loss" in entry]
    assert log[0]["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert max(abs(log[0]["policy/logratio_min"]), log[0]["policy/logratio_max"]) < 1e-3
    assert log[-1]["val/ratio_var"] > 1e-6
    update = load_file(tmp_path / "whole" / "checkpoint-1" / "rl_update.safetensors")
    expected = [-np.square(kick(seed)[:EXECUTED]).mean(1).sum() / 2 for seed in SEEDS]
    np.testing.assert_allclose(update["old_scores"], np.tile(expected, (2, 1)).T, rtol=1e-3)
    # The last decisions' returns: a failure brings 0, a success 1 with its last step, and a time-out what its last state is
    # worth after the steps that ran. The discount is 0.99 over a chunk of eight steps.
    values, returns, step = update["old_values"], update["returns"], 0.99 ** (1 / 8)
    won = step ** (EXECUTED - 1)
    np.testing.assert_allclose(returns[1::2], [0, won, step**EXECUTED * values[5], won], atol=1e-6)
    assert abs(values[5]) > 1e-3
    assert train(options, tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2", **more) == 0
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_the_ratio_is_one_with_intention_decoupling_too(served, options, tmp_path):
    run, _ = served
    assert train(options, tmp_path, rollouts_path=run / "rollouts", steps_per_update=1) == 0
    log = first_log(tmp_path)
    assert max(abs(log["policy/logratio_min"]), log["policy/logratio_max"]) < 1e-3
    assert log["decoupling/masked_fraction"] == pytest.approx(1 / 8)


def test_a_chain_is_ignored_by_fpo(served, options):
    run, _ = served
    store = LeRobotRolloutStore(run / "rollouts")
    decision = store.load([store.labeled()[0].episode_id])[0].decisions[0]
    assert decision.chain is not None
    processor = AutoProcessor.from_pretrained(options["model_path"])
    batches = {}
    for method in ("fpo", "flow_sde"):
        preparation = UpdatePreparation.__new__(UpdatePreparation)
        preparation.args, preparation.processor = SimpleNamespace(ratio_method=method), processor
        config = SimpleNamespace(chunk_end="hold")
        preparation.model = SimpleNamespace(base_policy=SimpleNamespace(config=config))
        batches[method] = preparation.policy_batch([decision.item()], [False])
    added = {"chain_before", "chain_after", "chain_step"}
    assert set(batches["flow_sde"]) - set(batches["fpo"]) == added
    assert batches["flow_sde"]["chain_step"].tolist() == [decision.chain.step]


def test_another_noise_level_is_refused(served, options, tmp_path, capsys):
    run, _ = served
    assert train(options, tmp_path, rollouts_path=run / "rollouts", flow_sde_noise_level=0.7) == 1
    error = capsys.readouterr().err
    assert "was sampled with {'num_steps': 10, 'noise_level': 0.5" in error
    assert "set flow_sde_noise_level" in error


@pytest.mark.parametrize(
    ("feature", "change", "message"),
    [
        ("chain_before", {"dtype": "float64"}, "chain_before: expected float32 of shape"),
        ("chain_after", {"shape": [8, 15]}, r"chain_after: expected float32 of shape \[8, 14\]"),
        ("chain_step", {"shape": [10**6]}, "chain_step: expected int64 of shape"),
    ],
)
def test_other_sizes_and_types_are_refused_before_anything_is_read(served, tmp_path, feature, change, message):
    run, _ = served
    folder = shutil.copytree(next((run / "rollouts").glob("[!.]*")), tmp_path / "rollout")
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"][f"rollout.{feature}"] |= change
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        read_rollouts(folder)
