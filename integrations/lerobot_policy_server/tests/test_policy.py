"""What is served is what LeRobot itself computes: its own loop of `select_action` over the same checkpoint."""

import json
import os

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot_policy_server.policy import ServedPolicy
from lerobot_policy_server.server import WebsocketPolicyServer
from small_policies import DIM, ROBOTS, write_policy

from syvla.serving.client.policy_client import PolicyClient
from syvla.serving.client.retries import PolicyError

NEEDS = {"diffusion": ("diffusers",), "groot": ("diffusers", "tree"), "wall_x": ("qwen_vl_utils", "torchdiffeq")}
KINDS = ("act", "smolvla", "pi0", "pi05", "xvla", *NEEDS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The working directory of the whole session, where names of VLMs and tokenizers lead."""
    folder = tmp_path_factory.mktemp("checkpoints")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="session")
def checkpoints(folder):
    """Folder of a checkpoint by kind, written when it is asked for; what LeRobot's extra of the kind brings must be there."""

    class Checkpoints(dict):
        def __missing__(self, kind):
            for module in NEEDS.get(kind, ()):
                pytest.importorskip(module, reason=f"{module} is not installed; LeRobot's extra of {kind} brings it")
            self[kind] = write_policy(folder / kind, kind, "tabletop")
            return self[kind]

    return Checkpoints()


@pytest.fixture
def request_of():
    generator = np.random.default_rng(0)
    images = {
        f"observation.images.{name}": generator.integers(0, 256, (96, 96, 3), np.uint8)
        for name in ROBOTS["tabletop"]["cameras"]
    }
    state = generator.normal(0.2, 0.1, DIM).astype(np.float32)
    return {**images, "observation.state": state, "task": "lift the cube"}


def lerobots_own_actions(path, request):
    """The actions that LeRobot's evaluation would execute from this observation, by its public functions alone."""
    config = PreTrainedConfig.from_pretrained(path)
    config.device = "cpu"
    policy = get_policy_class(config.type).from_pretrained(path, config=config)
    pre, post = make_pre_post_processors(config, pretrained_path=str(path))
    policy.reset()
    torch.manual_seed(5)
    actions = []
    for _ in range(config.n_action_steps):
        observation = {key: value.copy() for key, value in request.items() if key != "task"}
        batch = pre(prepare_observation_for_inference(observation, torch.device("cpu"), task=request["task"]))
        with torch.inference_mode():
            actions.append(post(policy.select_action(batch))[0].numpy())
    return np.stack(actions)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_what_lerobot_executes(checkpoints, request_of, kind):
    expected = lerobots_own_actions(checkpoints[kind], request_of)
    served = ServedPolicy(str(checkpoints[kind]), repeat_observation=kind == "diffusion")
    with WebsocketPolicyServer(served, port=0).running() as url, PolicyClient(url, extras=False) as client:
        torch.manual_seed(5)
        actions = client.infer(request_of)["actions"]
        assert client.metadata["action_horizon"] == len(expected)
        assert client.metadata["policy_type"] == kind
    assert actions.dtype == np.float32
    assert np.allclose(actions, expected, atol=1e-5)
    assert np.abs(actions - 0.2).max() < 5, "in the dataset's units: spread around 0.2"
    assert np.ptp(actions, axis=0).min() > 0, "the steps differ, so that their order is compared"


def test_groots_chunk_is_decoded_as_a_whole(checkpoints, request_of):
    """With statistics per step, as its base models have them: step by step, each would be decoded by those of the first."""
    served = ServedPolicy(str(checkpoints["groot"]))
    torch.manual_seed(5)
    normalized = (served.act(request_of) - 0.2) / 0.3  # the statistics of `small_policies` have 0.2 - 0.3 to 0.2 + 0.3
    from lerobot.policies.groot.processor_groot import GrootN17ActionDecodeStep

    low = np.arange(16.0)[:, None].repeat(DIM, axis=1)
    configs = [{"rep": "absolute", "type": "non_eef", "format": "default", "state_key": None}]
    action = {"modality_keys": ["arm"], "action_configs": configs, "delta_indices": list(range(16))}
    served.postprocessor.steps[0] = GrootN17ActionDecodeStep(
        env_action_dim=DIM,
        raw_stats={"action": {"arm": {"min": low.tolist(), "max": (low + 2).tolist()}}},
        modality_config={"action": action},
    )
    torch.manual_seed(5)
    actions = served.act(request_of)
    assert actions.shape == (8, DIM)
    assert np.allclose(actions, low[:8] + 1 + normalized, atol=1e-4)


def test_a_history_is_refused_unless_it_is_asked_for(checkpoints):
    with pytest.raises(ValueError, match=r"wants the last 2 observations.*--repeat-observation"):
        ServedPolicy(str(checkpoints["diffusion"]))


def test_a_request_is_not_answered_from_the_queue_of_another(checkpoints, request_of):
    served = ServedPolicy(str(checkpoints["act"]))
    first = served.act(request_of)
    other = {**request_of, "observation.state": request_of["observation.state"] + 0.3}
    assert not np.allclose(served.act(other), first)
    assert np.allclose(served.act(request_of), first)


def test_keys_may_be_renamed_and_pictures_come_either_way_round(checkpoints, request_of):
    expected = ServedPolicy(str(checkpoints["act"])).act(request_of)
    names = {"observation/image": "observation.images.head", "observation/state": "observation.state"}
    renamed = {key: request_of[key] for key in request_of if key not in names.values()}
    renamed |= {
        "observation/image": request_of["observation.images.head"].transpose(2, 0, 1),
        "observation/state": request_of["observation.state"],
    }
    assert np.array_equal(ServedPolicy(str(checkpoints["act"]), rename=names).act(renamed), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.images.head": None}, r"observation\.images\.head: missing; the request has .*--rename KEY="),
        (
            {"observation.state": np.zeros(7, np.float32)},
            r"observation\.state: expected finite numbers of shape \(14,\)",
        ),
        ({"observation.state": np.full(DIM, np.nan, np.float32)}, "expected finite numbers"),
        ({"observation.images.head": np.zeros((96, 96, 3))}, r"expected uint8 \(H, W, 3\), got float64"),
        ({"task": None}, "task: expected an instruction"),
    ],
)
def test_what_is_wrong_with_a_request_is_named_and_the_connection_goes_on(checkpoints, request_of, change, message):
    wrong = {key: value for key, value in {**request_of, **change}.items() if value is not None}
    served = ServedPolicy(str(checkpoints["act"]))
    with WebsocketPolicyServer(served, port=0).running() as url, PolicyClient(url, extras=False) as client:
        with pytest.raises(PolicyError, match=message):
            client.infer(wrong)
        assert client.infer(request_of)["actions"].shape == (10, DIM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temporal_ensemble_coeff": 0.01, "n_action_steps": 1}, "temporal_ensemble_coeff averages the chunks"),
        ({"use_peft": True}, "is an adapter"),
    ],
)
def test_what_cannot_be_served_is_refused(checkpoints, tmp_path, change, message):
    for file in checkpoints["act"].iterdir():
        (tmp_path / file.name).symlink_to(file.resolve())
    config = json.loads((checkpoints["act"] / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        ServedPolicy(str(tmp_path))


def test_other_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json, model\.safetensors, policy_preprocessor\.json"):
        ServedPolicy(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ServedPolicy(str(tmp_path / "nothing"))


def test_a_forged_array_is_refused(checkpoints):
    """An object dtype, whose bytes numpy would take for pointers."""
    import msgpack

    served = ServedPolicy(str(checkpoints["act"]))
    forged = {b"__ndarray__": True, b"data": b"\x41" * 8, b"dtype": "|O", b"shape": [1]}
    answer = WebsocketPolicyServer(served, port=0)._answer(msgpack.packb({"observation.state": forged}))
    assert isinstance(answer, str)
    assert "observation.state" in answer
