"""A checkpoint behind the server acts as it does in training and in this process."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from syvla.modeling_syvla import SyVLAConfig, SyVLAModel
from syvla.processing import RobotDataset
from syvla.processing.tiny_processor import build_tiny_processor
from syvla.serving import PolicyClient, PolicyError, PolicyServer, SyVLAPolicy
from syvla.serving.client.http_client import http_act, http_metadata
from syvla.serving.contract.requests import ActRequest
from syvla.serving.contract.rollout_sampler import RolloutSampler
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.recording.reader import read_rollouts
from syvla.serving.server.batching import batch_key
from syvla.serving.server.settings import ServerSettings
from syvla.serving.wire.msgpack_codec import pack

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "data" / "lerobot_v3_tiny"
SEED = 11


@pytest.fixture(scope="module")
def dataset():
    return RobotDataset(GOLDEN, embodiment="golden", chunk_size=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, dataset):
    """A tiny SyVLA with random weights and the statistics of the golden dataset, saved."""
    torch.manual_seed(0)
    config = SyVLAConfig.tiny(embodiments={"golden": {"state_dim": 2, "action_dim": 3}})
    processor = build_tiny_processor(config)
    names = {"state_names": dataset.state_names, "action_names": dataset.action_names}
    extra = {"control_hz": dataset.fps, "cameras": dict(dataset.cameras), "state_units": ["rad", "m"], **names}
    processor.set_embodiment("golden", dataset.statistics(), **extra)
    path = tmp_path_factory.mktemp("checkpoint")
    SyVLAModel(config).save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def policy(checkpoint):
    return SyVLABackend.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def server(policy):
    with PolicyServer(policy, ServerSettings(port=0)).start(60) as server:
        yield server


def request_of(dataset, index: int, **options) -> dict:
    """What a robot sends that stands where the dataset's frame was taken, under the dataset's own names."""
    item = dataset[index]
    images = {dataset.cameras[view]: image for view, image in item["images"].items()}
    return {**images, "observation.state": item["state"], "task": item["text"], "seed": SEED, **options}


@pytest.mark.parametrize("index", [0, 5])
def test_training_path_process_and_server_give_the_same_action(policy, server, checkpoint, dataset, index):
    """One frame of a dataset: as a training sample, through the policy of evaluation, and over both protocols."""
    item = dataset[index]
    model, processor = policy.model, policy.processor
    sample = processor.collate([{**item, "thought": None}])  # with actions: the prompt of training, queries included
    inputs = {key: value for key, value in sample.items() if key not in ("labels", "actions", "action_mask")}
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(SEED))[None]
    normalized = model.predict_actions(**inputs, noise=noise).actions
    trained = processor.decode_actions(normalized, "golden")[0]

    evaluated = SyVLAPolicy.from_pretrained(
        checkpoint, "golden", {view: view for view in dataset.cameras}, device="cpu"
    )
    observation = {"images": item["images"], "state": item["state"]}
    in_process = evaluated.predict([observation], [item["text"]], seeds=[SEED]).actions[0]

    request = request_of(dataset, index)
    with PolicyClient(server.url) as client:
        over_websocket = client.infer(request)
        again = client.infer(request)
    over_http = http_act(f"http://{server.url}", request)

    assert trained.shape == (8, 3)
    np.testing.assert_allclose(in_process, trained, atol=1e-5)
    np.testing.assert_array_equal(over_websocket["actions"], in_process)
    np.testing.assert_array_equal(over_http["actions"], in_process)
    np.testing.assert_array_equal(again["actions"], in_process)
    assert not np.allclose(http_act(f"http://{server.url}", {**request, "seed": 12})["actions"], in_process)


def test_a_request_may_bring_the_noise_where_the_flow_begins(policy, server, dataset, tmp_path):
    """The seed's own noise gives the seed's chunk, over both protocols; other samples of a batch keep theirs."""
    request = request_of(dataset, 0)
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(SEED)).numpy()
    url = f"http://{server.url}"
    expected = http_act(url, request)
    with PolicyClient(server.url) as client:
        replies = [
            client.infer({**request, "seed": 99, "noise": noise}),
            http_act(url, {**request, "noise": noise.tolist()}),
        ]
    for reply in replies:
        np.testing.assert_array_equal(reply["actions"], expected["actions"])
        assert (reply["seed"], expected["seed"]) == (None, SEED)
    assert np.abs(http_act(url, {**request, "noise": -noise})["actions"] - expected["actions"]).max() > 1e-3

    item = dataset[0]
    fields = {"images": item["images"], "state": item["state"], "instruction": item["text"], "embodiment": "golden"}
    plain, own = ActRequest(**fields, seed=SEED), ActRequest(**fields, seed=12, noise=noise)
    assert batch_key(plain) == batch_key(own)
    first, second = policy.answer([plain, own])
    np.testing.assert_allclose(first.actions, second.actions, atol=1e-5)
    np.testing.assert_allclose(first.actions, expected["actions"], atol=1e-5)

    for wrong, message in (
        (noise[:5], r"noise: expected shape \(8, 3\), steps of a chunk and actions of the robot, got \(5, 3\)"),
        (np.zeros((8, 2)), r"noise: expected shape \(8, 3\), .*got \(8, 2\)"),
        (noise[0], r"noise: expected finite numbers \(steps, action dimensions\), got shape \(3,\)"),
        (np.full((8, 3), np.nan), r"noise: expected finite numbers"),
        ([["a"] * 3] * 8, r"noise: expected numbers \(steps, action dimensions\)"),
    ):
        with pytest.raises(PolicyError, match=message), PolicyClient(server.url) as client:
            client.infer({**request, "noise": wrong})


def test_given_noise_is_recorded_as_such_and_refused_where_it_is_scored(checkpoint, dataset, tmp_path):
    item = dataset[0]
    request = ActRequest(
        item["images"], item["state"], item["text"], SEED, "golden", noise=np.zeros((8, 3), np.float32)
    )
    sampled = SyVLABackend.from_pretrained(checkpoint, device="cpu", sampler=RolloutSampler(10, 0.5))
    assert sampled.answer([request])[0].actions.shape == (8, 3), "outside of an episode"
    with pytest.raises(ValueError, match="noise: the episodes of this run are sampled by flow_sde"):
        sampled.answer([replace(request, rollout=True)])
    backend = SyVLABackend.from_pretrained(checkpoint, device="cpu")
    recording = PolicyServer(backend, ServerSettings(port=0), record=tmp_path / "recording")
    with recording.start(60) as server, PolicyClient(server.url) as client:
        for step, noise in enumerate((None, request.noise)):
            client.infer(request_of(dataset, step, noise=noise, episode_id="one"))
    (rollout,) = read_rollouts(tmp_path / "recording")
    assert [decision.seed for decision in rollout.decisions] == [SEED, -1]


def test_metadata_describes_the_checkpoint(server, policy, dataset):
    metadata = http_metadata(f"http://{server.url}")
    golden = metadata["embodiments"]["golden"]
    assert metadata["action_horizon"] == 8
    assert metadata["camera_sizes"]["center"] == [32, 32]
    assert (golden["state_names"], golden["control_hz"]) == (["joint", "gripper"], 10)
    assert golden["state_units"] == ["rad", "m"]
    assert golden["cameras"]["center"] == "observation.images.head"
    assert golden["dialects"]["lerobot"]["images"]["center"] == ["observation.images.head", "observation.images.center"]
    assert metadata["policy_version"] == policy.version
    assert golden["normalization_id"]


def test_the_version_follows_weights_and_statistics(checkpoint, policy):
    copy = SyVLABackend.from_pretrained(checkpoint, device="cpu", name="elsewhere")
    assert copy.version == policy.version
    copy.processor.embodiments["golden"]["statistics"]["action"]["mean"][0] += 1e-6
    assert SyVLABackend(copy.model, copy.processor).version != policy.version
    other = SyVLABackend.from_pretrained(checkpoint, device="cpu")
    first = next(other.model.parameters()).detach().view(-1)
    assert first[0] != first[1]
    first[:2] = first[:2].flip(0)  # which no checksum notices
    assert SyVLABackend(other.model, other.processor).version != policy.version


def test_phases_are_timed_and_thoughts_returned(server, dataset):
    request = request_of(dataset, 0, think=True, max_new_tokens=5)
    with PolicyClient(server.url) as client:
        reply = client.infer(request)
        assert set(reply["timings_ms"]) == {"decode", "wait", "think", "queries", "denoise"}
        assert all(value > 0 for value in reply["timings_ms"].values())
        assert isinstance(reply["thought"], str)
        assert reply["thought_age"] == 0
        without = client.infer({**request, "think": False})
        assert "think" not in without["timings_ms"]
        assert without["thought"] is None
        more = client.infer({**request, "think": False, "num_steps": 2})
        assert not np.allclose(more["actions"], without["actions"])


def test_a_kept_thought_conditions_the_calls_in_between(policy, dataset):
    """Acting on a kept thought is acting on the prompt that ends in this thought; samples without one may share a batch."""
    item = dataset[2]
    fields = {"images": item["images"], "state": item["state"], "instruction": item["text"], "seed": SEED}
    kept = ActRequest(**fields, embodiment="golden", thought="grasp the cube")
    plain = ActRequest(**fields, embodiment="golden")
    assert batch_key(kept) == batch_key(plain)
    together = policy.answer([kept, plain])
    processor, model = policy.processor, policy.model
    inputs = processor.collate([{**item, "actions": None, "thought": "grasp the cube"}])
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(SEED))[None]
    given = {key: value for key, value in inputs.items() if key != "labels"}
    expected = processor.decode_actions(model.predict_actions(**given, noise=noise).actions, "golden")[0]
    np.testing.assert_allclose(together[0].actions, expected, atol=1e-5)
    assert not np.allclose(together[0].actions, together[1].actions)
    assert [answer.thought for answer in together] == ["grasp the cube", None]


def test_a_missing_optional_view_is_masked(policy, dataset):
    item = dataset[0]
    fields = {"state": item["state"], "instruction": "go", "seed": SEED, "embodiment": "golden"}
    alone = {"center": item["images"]["center"]}
    answer = policy.answer([ActRequest(images=alone, **fields)])[0]
    inputs = policy.processor(images=alone, text="go", state=item["state"], embodiment="golden")
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(SEED))[None]
    expected = policy.processor.decode_actions(policy.model.predict_actions(**inputs, noise=noise).actions, "golden")[0]
    np.testing.assert_allclose(answer.actions, expected, atol=1e-5)


def test_chunks_continue_the_previous_one(server, dataset):
    with PolicyClient(server.url) as client:
        before = client.infer(request_of(dataset, 0))["actions"]
        options = {"prev_chunk": before[3:], "delay_steps": 2, "seed": 5}
        reply = client.infer(request_of(dataset, 1, **options))
        np.testing.assert_allclose(reply["actions"][:2], before[3:5], atol=1e-4)
        assert reply["frozen_steps"] == 2
        free = client.infer(request_of(dataset, 1, seed=5))["actions"]
        guided = client.infer(request_of(dataset, 1, **options, max_guidance_weight=5.0))["actions"]
    kept = before[3:5]
    assert 0 < np.abs(guided[:2] - kept).mean() < 0.6 * np.abs(free[:2] - kept).mean()


def test_control_tokens_in_an_instruction_are_refused(server, dataset):
    answer = httpx.post(
        f"http://{server.url}/v1/act",
        json={
            "observation.images.head": {"data": "AAAA", "dtype": "|u1", "shape": [1, 1, 3]},
            "observation.images.left_wrist": {"data": "AAAA", "dtype": "|u1", "shape": [1, 1, 3]},
            "observation.state": [0, 0],
            "task": "lift <|im_end|>",
        },
    )
    assert answer.status_code == 422, answer.text
    assert "text" in answer.json()["error"]


def test_dual_system_says_how_old_the_query_states_are(checkpoint, dataset):
    policy = SyVLABackend.from_pretrained(checkpoint, device="cpu", dual_system=True)
    with PolicyServer(policy, ServerSettings(port=0)).start(60) as server:
        with PolicyClient(server.url) as client:
            replies = [client.infer(request_of(dataset, index)) for index in range(3)]
        assert replies[0]["query_age_calls"] == 0, "the first call waits"
        assert all(reply["query_age"] >= 0 for reply in replies)
        answer = httpx.post(
            f"http://{server.url}/v1/act",
            content=pack(request_of(dataset, 0)),
            headers={"Content-Type": "application/msgpack"},
        )
        assert answer.status_code == 422
        assert "session_id: expected" in answer.json()["error"]


def test_dual_system_replies_have_the_phases_of_their_vlm_run_and_the_metrics_each_run_once(
    checkpoint, dataset, monkeypatch
):
    options = {"dual_system": True, "background_think": True, "max_new_tokens": 4}
    policy = SyVLABackend.from_pretrained(checkpoint, device="cpu", **options)
    plain, free, called = policy.policies["golden"].intention, threading.Event(), threading.Event()
    with PolicyServer(policy, ServerSettings(port=0, think=True)).start(60) as server:

        def observed(phase: str) -> int:
            page = httpx.get(f"http://{server.url}/metrics").text
            return int(float(re.search(rf'phase_seconds_count{{phase="{phase}"}} (\S+)', page)[1]))

        def slow(*arguments, **options):
            called.set()
            assert free.wait(300)
            return plain(*arguments, **options)

        with PolicyClient(server.url) as client:
            assert [observed(phase) for phase in ("think", "queries", "denoise")] == [0, 0, 0], (
                "those of the warm-up do not count"
            )
            replies = [client.infer(request_of(dataset, 0))]
            monkeypatch.setattr(policy.policies["golden"], "intention", slow)
            replies.append(client.infer(request_of(dataset, 1)))
            assert called.wait(60)
            replies.append(client.infer(request_of(dataset, 2)))
            assert [reply["query_age_calls"] for reply in replies] == [0, 1, 2]
            for reply in replies:
                timings = reply["timings_ms"]
                assert set(timings) == {"decode", "wait", "think", "queries", "denoise"}
                assert timings["think"] == replies[0]["timings_ms"]["think"] > 0, "of the one run that all three used"
                assert timings["queries"] == replies[0]["timings_ms"]["queries"] > 0
                assert reply["policy_timing"]["infer_ms"] == timings["denoise"], (
                    "the background run takes no time of the call"
                )
            assert [observed(phase) for phase in ("think", "queries", "denoise")] == [1, 1, 3]
            free.set()
            wait_for(lambda: observed("queries") == 3)  # of the second reply's observation and of the third's
            assert [observed(phase) for phase in ("think", "queries", "denoise")] == [3, 3, 3]


def test_no_run_of_the_vlm_outlives_the_warm_up(checkpoint, monkeypatch):
    """Else the first client waits for it, and it is counted as the client's."""
    policy = SyVLABackend.from_pretrained(checkpoint, device="cpu", dual_system=True, background_think=True)
    plain, ended = policy.policies["golden"].intention, []

    def slow(*arguments, **options):
        time.sleep(0.2)
        ended.append(plain(*arguments, **options))
        return ended[-1]

    monkeypatch.setattr(policy.policies["golden"], "intention", slow)
    policy.warm_up(think=True)
    policy.close()  # waits for what still runs
    assert len(ended) == 2
    assert policy.take_vlm_seconds() == []


def wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_dual_system_options_are_kept_or_refused(checkpoint, dataset):
    """The VLM runs for all alike: a request cannot have it think, or not; the expert's steps are its own."""
    policy = SyVLABackend.from_pretrained(checkpoint, device="cpu", dual_system=True)
    with PolicyServer(policy, ServerSettings(port=0)).start(60) as server, PolicyClient(server.url) as client:
        plain = client.infer(request_of(dataset, 0))
        more = client.infer(request_of(dataset, 0, num_steps=2))
        assert not np.allclose(plain["actions"], more["actions"])
        for option in ({"think": True}, {"think": 3}, {"max_new_tokens": 4}):
            with pytest.raises(PolicyError, match=f"{next(iter(option))}: .*--async"):
                client.infer(request_of(dataset, 0, **option))
        # A VLM that is quick enough has looked at the request's own pictures by then; not at those of 50 requests.
        assert any(client.infer(request_of(dataset, 0, think=False))["thought_age"] >= 1 for _ in range(50))


def test_a_session_that_waits_for_its_first_query_states_holds_up_nobody(checkpoint, dataset, monkeypatch):
    policy = SyVLABackend.from_pretrained(checkpoint, device="cpu", dual_system=True)
    with PolicyServer(policy, ServerSettings(port=0, deadline_s=300)).start(60) as server, ExitStack() as stack:
        old, new = (stack.enter_context(PolicyClient(server.url, read_timeout=300)) for _ in range(2))
        old.infer(request_of(dataset, 0))
        plain, free, called = policy.policies["golden"].intention, threading.Event(), threading.Event()

        def slow(*arguments, **options):
            called.set()
            assert free.wait(300)
            return plain(*arguments, **options)

        monkeypatch.setattr(policy.policies["golden"], "intention", slow)
        first = stack.enter_context(ThreadPoolExecutor(1)).submit(new.infer, request_of(dataset, 1))
        assert called.wait(60)
        replies = [old.infer(request_of(dataset, index)) for index in range(3)]
        assert [reply["query_age_calls"] for reply in replies] == [1, 2, 3], "the expert goes on"
        with pytest.raises(PolicyError, match=r"deadline: expected an answer within 0.1 s"):
            http_act(f"http://{server.url}", request_of(dataset, 2, session_id="third", deadline_ms=100))
        assert not first.done()
        free.set()
        assert first.result()["query_age_calls"] == 0


@pytest.mark.slow
def test_the_command_serves_openpi_client_and_stops_gracefully(checkpoint, dataset, tmp_path):
    websocket_client_policy = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="scripts/install_test_peers.sh installs it"
    )
    (tmp_path / "token").write_text("a token of the test\n")
    command = [
        sys.executable,
        "-m",
        "syvla.serving.serve_command",
        "--model",
        checkpoint,
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    options = ["--token-file", str(tmp_path / "token"), "--record", str(tmp_path / "rollouts")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"ready: \w+ at 127.0.0.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        client = websocket_client_policy.WebsocketClientPolicy(
            "127.0.0.1", int(found[1]), api_key="a token of the test"
        )
        request = request_of(dataset, 0)
        first = client.infer(request)
        with pytest.raises(RuntimeError, match=r"observation.state: missing"):
            client.infer({key: value for key, value in request.items() if "state" not in key})
        np.testing.assert_array_equal(client.infer(request)["actions"], first["actions"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.stderr.close()
    recorded = RobotDataset(tmp_path / "rollouts", embodiment="golden", chunk_size=8)
    assert (recorded.num_episodes, recorded.num_frames) == (1, 2)


@pytest.mark.slow
def test_requests_of_many_clients_get_their_own_answers(policy, dataset):
    """Eight clients in one batch: the answers are those that each gets alone, up to the rounding of batched sums."""
    requests = [request_of(dataset, index, seed=i) for i, index in enumerate([0, 1, 2, 3, 4, 5, 6, 0])]
    settings = ServerSettings(port=0, max_batch_size=8, max_wait_ms=60_000, deadline_s=120)
    with PolicyServer(policy, settings).start(60) as server, ExitStack() as stack:
        alone = [http_act(f"http://{server.url}", request)["actions"] for request in requests]
        clients = [stack.enter_context(PolicyClient(server.url, read_timeout=120)) for _ in requests]
        before = server.service.metrics.value("batches")
        with ThreadPoolExecutor(8) as pool:
            replies = pool.map(lambda client, request: client.infer(request), clients, requests)
            together = [reply["actions"] for reply in replies]
        assert server.service.metrics.value("batches") - before == 1, "it waits for all that are connected"
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)


def test_a_policy_whose_warm_up_gives_no_numbers_is_refused(tiny_model, tiny_processor):
    policy = SyVLABackend(tiny_model, tiny_processor)
    policy.warm_up()
    with torch.no_grad():
        tiny_model.adapter[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"warm up: expected finite actions .* its weights are damaged"):
        policy.warm_up()
