"""GR00T's ZeroMQ protocol against a stand-in server that reads and writes the published bytes itself."""

import numpy as np
import pytest
import reach_environment
from reach_environment import ReachEnvironment

pytest.importorskip("zmq", reason="pyzmq is not installed: pip install 'syvla[gr00t]'")
from groot_server import GrootServer, packed, unpacked

from syvla.evaluation import closed_loop
from syvla.evaluation.client_dialects import load_client_dialect
from syvla.evaluation.closed_loop import evaluate_closed_loop
from syvla.evaluation.groot_policy import GrootClient, GrootPolicy
from syvla.serving.wire.msgpack_codec import pack

reach_environment.register()

DIALECT = """
images: {center: [video, image]}
image_layout: [hwc]
state:
  - {key: [state, position], dim: 2}
  - {key: [state, goal], dim: 2}
prompt: [[language, task]]
leading_axes: 2
prompt_axes: 2
codec: gr00t
observation_key: observation
actions: [{key: dx, dim: 1}, {key: dy, dim: 1}]
reply_axes: 1
"""
MODALITIES = {"video": ["image"], "state": ["position", "goal"], "language": ["task"]}


def towards(observation):
    """What a policy for `ReachEnvironment` answers: batch, time and dimension; four equal steps."""
    state = observation["state"]
    step = np.clip((state["goal"][0, 0] - state["position"][0, 0]) / 4, -0.1, 0.1).astype(np.float32)
    return [{name: np.full((1, 4, 1), value, np.float32) for name, value in zip(("dx", "dy"), step, strict=True)}, {}]


@pytest.fixture
def dialect(tmp_path):
    def write(text=DIALECT):
        (tmp_path / "reach.yaml").write_text(text)
        return str(tmp_path / "reach.yaml")

    return write


def test_a_policy_is_evaluated_by_its_address(dialect, tmp_path, capsys):
    arguments = ["--env", "reach", "--task", "near", "--episodes", "3", "--quiet", "--dialect", dialect()]
    with GrootServer(towards, MODALITIES) as server:
        status = closed_loop.main([*arguments, "--server", server.url, "--output", str(tmp_path / "out")])
    assert status == 0
    assert "near: 3/3" in capsys.readouterr().out
    first = server.requests[0]
    assert first["video"]["image"].shape == (1, 1, 8, 8, 3)
    assert first["video"]["image"].dtype == np.uint8
    assert first["state"]["goal"].shape == (1, 1, 2)
    assert first["state"]["goal"].dtype == np.float32
    assert first["language"] == {"task": [["reach the near goal"]]}
    assert server.endpoints[0] == "get_modality_config"


def test_the_bytes_are_those_of_the_published_client():
    """`msgpack.packb` with `np.save`, as MsgSerializer of N1.6 does it, beside ours."""
    msgpack = pytest.importorskip("msgpack")
    import io

    def encode(array):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}

    for array in (
        np.arange(6, dtype=np.float32).reshape(1, 2, 3),
        np.zeros((1, 1, 4, 4, 3), np.uint8),
        np.float32([1]),
    ):
        data = {"endpoint": "get_action", "data": {"observation": {"state": {"x": array}}, "options": None}}
        assert pack(data, "gr00t") == msgpack.packb(data, default=encode)


@pytest.mark.parametrize("codec", ["gr00t", "msgpack-numpy"])
def test_both_codecs_are_written_and_read(dialect, codec):
    def answer(observation):
        reply = towards(observation)
        return reply if codec == "gr00t" else pack_msgpack_numpy(reply)

    with GrootServer(answer, MODALITIES) as server:
        policy = GrootPolicy(
            server.url, ReachEnvironment(), dialect=dialect(DIALECT.replace("codec: gr00t", f"codec: {codec}"))
        )
        policy.close()
    assert policy.chunk_size == 4
    assert server.requests[0]["video"]["image"].shape == (1, 1, 8, 8, 3)


def pack_msgpack_numpy(reply):
    """The published form of msgpack-numpy 0.4.8, keys as bytes."""

    def encoded(array):
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}

    actions, info = reply
    return packed([{name: encoded(array) for name, array in actions.items()}, info])


def test_older_servers_take_the_observation_itself_and_answer_with_actions_alone(dialect):
    """N1.5: flat keys, a time axis, no batch."""
    text = """
images: {center: video.image}
image_layout: [hwc]
state: [{key: state.position, dim: 2}, {key: state.goal, dim: 2}]
prompt: [annotation.human.task_description]
leading_axes: 1
prompt_axes: 1
codec: gr00t
actions: [{key: action.dx, dim: 1}, {key: action.dy, dim: 1}]
"""
    modalities = {
        "video": ["video.image"],
        "state": ["state.position", "state.goal"],
        "language": ["annotation.human.task_description"],
    }
    answer = {"action.dx": np.full(3, 0.1), "action.dy": np.full((3, 1), -0.1)}
    with GrootServer(lambda observation: answer, modalities, flat=True) as server:
        policy = GrootPolicy(server.url, ReachEnvironment(), dialect=dialect(text))
        policy.close()
    assert policy.chunk_size == 3
    assert server.requests[0]["video.image"].shape == (1, 8, 8, 3)
    assert server.requests[0]["annotation.human.task_description"] == ["reach the near goal"]


def test_liberos_dialect_says_what_gr00ts_own_environment_shows():
    """Shapes of its `_process_observation` with batch and time, and its gripper: 0 closes and 1 opens there."""
    dialect = load_client_dialect("gr00t_libero")
    views = {name: np.zeros((256, 256, 3), np.uint8) for name in ("center", "left_wrist")}
    request = dialect.to_request(views, np.arange(8, dtype=np.float32), "lift")
    assert {name: array.shape for name, array in request["video"].items()} == {
        "image": (1, 1, 256, 256, 3),
        "wrist_image": (1, 1, 256, 256, 3),
    }
    sizes = {name: array.shape for name, array in request["state"].items()}
    assert sizes == {**dict.fromkeys(("x", "y", "z", "roll", "pitch", "yaw"), (1, 1, 1)), "gripper": (1, 1, 2)}
    assert request["state"]["gripper"].ravel().tolist() == [6.0, 7.0]
    assert request["language"] == {"annotation.human.action.task_description": [["lift"]]}
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    reply = {name: np.full((1, 2, 1), index / 10, np.float32) for index, name in enumerate(names)}
    reply["gripper"] = np.float32([[[0.02], [0.97]]])
    actions = dialect.read_actions(reply)
    assert np.allclose(actions[0], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0])
    assert np.allclose(actions[1, -1], -1.0)
    assert dialect.observation.replan_steps == 8


def test_who_it_is_follows_from_address_dialect_and_modalities(dialect):
    with GrootServer(towards, MODALITIES) as server:
        path = dialect()
        one = GrootPolicy(server.url, ReachEnvironment(), dialect=path)
        asked = GrootPolicy(server.url, ReachEnvironment(), dialect=path, prompt="go")
        edited = GrootPolicy(server.url, ReachEnvironment(), dialect=dialect(DIALECT + "# another\n"))
    assert one.identity()["policy"] == "GR00T server"
    assert asked.identity() == {**one.identity(), "prompt": "go"}
    assert edited.identity() != one.identity()


def test_modalities_that_differ_are_named_before_anything_runs(dialect):
    other = {**MODALITIES, "state": ["position", "goal", "gripper"]}
    with (
        GrootServer(towards, other) as server,
        pytest.raises(
            ValueError,
            match=r"the server needs state \['goal', 'gripper', 'position'\], the dialect sends \['goal', 'position'\]",
        ),
    ):
        GrootPolicy(server.url, ReachEnvironment(), dialect=dialect())
    assert server.requests == []


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ({"error": "CUDA out of memory"}, RuntimeError, "get_action: CUDA out of memory"),
        (b"ERROR", RuntimeError, "the server failed on get_action"),
        (b"\xc1", ValueError, "expected msgpack with arrays of plain numbers, and nothing pickled"),
        ([{"dx": np.array([None, {}], object), "dy": np.zeros(1)}, {}], ValueError, "nothing pickled: .*dx"),
        ([{"dx": np.zeros((1, 4, 1))}, {}], ValueError, r"dy: missing in the reply, which has \['dx'\]"),
        ([{"dx": np.zeros((1, 4, 1)), "dy": np.zeros((1, 3, 1))}, {}], ValueError, "expected parts of one length, got"),
        ([{"dx": np.zeros((1, 4, 2)), "dy": np.zeros((1, 4, 1))}, {}], ValueError, r"dx: expected numbers \(T, 1\)"),
        (
            [{"dx": np.zeros((2, 4, 1)), "dy": np.zeros((2, 4, 1))}, {}],
            ValueError,
            "dx: expected 1 leading axes of length 1",
        ),
        ([], ValueError, "dx: missing in the reply, which has list"),
        (["actions"], ValueError, "dx: missing in the reply, which has str"),
    ],
)
def test_other_replies_are_named(dialect, reply, error, message):
    with GrootServer(lambda observation: reply, MODALITIES) as server, pytest.raises(error, match=message):
        GrootPolicy(server.url, ReachEnvironment(), dialect=dialect())


def test_a_token_is_sent_and_a_wrong_one_shown(dialect):
    with GrootServer(towards, MODALITIES, token="secret") as server:
        assert GrootPolicy(server.url, ReachEnvironment(), dialect=dialect(), token="secret").chunk_size == 4
        with pytest.raises(RuntimeError, match="Unauthorized: Invalid API token"):
            GrootPolicy(server.url, ReachEnvironment(), dialect=dialect(), token="guess")


def test_nobody_is_named_in_time_and_the_client_goes_on(dialect):
    with pytest.raises(ConnectionError, match=r"tcp://127\.0\.0\.1:1: no answer within 0\.3 s"):
        GrootClient("tcp://127.0.0.1:1", timeout=0.3).call("ping")
    with pytest.raises(ValueError, match=r"expected tcp://host:port, got 'tcp://127\.0\.0\.1'"):
        GrootClient("tcp://127.0.0.1")


def test_what_has_no_place_is_refused(dialect):
    with pytest.raises(ValueError, match="has no place for num_steps, think"):
        GrootPolicy("tcp://127.0.0.1:1", ReachEnvironment(), dialect=dialect(), think=True, num_steps=3, connections=1)
    with pytest.raises(ValueError, match="dialect 'lerobot' does not say how GR00T's server is asked"):
        GrootPolicy("tcp://127.0.0.1:1", ReachEnvironment())


def test_the_stand_in_reads_what_it_writes():
    value = {"a": [1, -5, 2.5, None, True, "text", b"bytes", {}], "b": np.arange(3)}
    again = unpacked(packed(value))
    assert again["a"] == value["a"]
    assert np.array_equal(again["b"], value["b"])


def test_an_evaluation_takes_the_published_replan_steps(dialect):
    with GrootServer(towards, MODALITIES) as server:
        options = {
            "policy_options": {"dialect": dialect(DIALECT + "replan_steps: 2\n")},
            "progress": False,
            "episodes": 1,
        }
        result = evaluate_closed_loop(server.url, "reach", "near", **options)
    assert result.settings["replan_steps"] == 2
