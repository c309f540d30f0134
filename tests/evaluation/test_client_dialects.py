"""Dialects of other projects' servers: axes, parts of the action, grippers, and what is wrong in a file."""

import numpy as np
import pytest
import reach_environment
from reach_environment import ReachEnvironment

from syvla.evaluation.client_dialects import ClientDialect, GripperRule, client_dialect_names, load_client_dialect
from syvla.serving.wire.dialect_files import dialect_names, load_dialect

reach_environment.register()
BASE = "images: {center: image}\nstate: [{key: state}]\nprompt: [prompt]\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def test_the_servers_dialects_stay_as_they_are():
    assert set(client_dialect_names()) == {*dialect_names(), "gr00t_libero"}
    for name in dialect_names():
        dialect = load_client_dialect(name)
        assert dialect.observation == load_dialect(name)
        assert dialect.is_plain
        assert dialect.identity == name
        actions = np.arange(6.0).reshape(3, 2)
        assert np.array_equal(dialect.read_actions({"actions": actions}), actions.astype(np.float32))


def test_axes_go_before_images_and_state_and_lists_around_the_prompt(file):
    dialect = load_client_dialect(file(BASE + "leading_axes: 1\nprompt_axes: 1\n"))
    request = dialect.to_request({"center": np.zeros((4, 5, 3), np.uint8)}, np.zeros(3, np.float32), "lift")
    assert request["image"].shape == (1, 4, 5, 3)
    assert request["state"].shape == (1, 3)
    assert request["prompt"] == ["lift"]


def test_actions_come_from_nested_maps_in_the_order_of_the_file(file):
    text = "actions: [{key: [action, arm], dim: 2}, {key: [action, hand]}]\nreply_axes: 1\n"
    dialect = load_client_dialect(file(BASE + text))
    reply = {"action": {"hand": np.full((1, 2, 1), 9.0), "arm": np.arange(4.0).reshape(1, 2, 2)}}
    assert dialect.read_actions(reply).tolist() == [[0.0, 1.0, 9.0], [2.0, 3.0, 9.0]]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{dims: [1], from: [0, 1], to: [1, -1], binarize: true}", [1.0, 1.0, -1.0, -1.0]),  # OpenVLA's to LIBERO's
        ("{dims: [1], from: [0, 1], to: [1, -1]}", [1.0, 0.5, -0.5, -1.0]),
        ("{dims: [-1], from: [0, 1], to: [0, 1]}", None),
        ("{dims: [1], from: [0, 1], to: [0, 0.04]}", [0.0, 0.01, 0.03, 0.04]),  # share to meters
    ],
)
def test_grippers_are_mapped(file, rule, expected):
    chunk = np.stack([np.full(4, 7.0), [0.0, 0.25, 0.75, 1.0]], axis=1)
    path = file(BASE + f"gripper: {rule}\n")
    if expected is None:
        with pytest.raises(ValueError, match="gripper: dims: expected numbers of action dimensions, from 0"):
            load_client_dialect(path)
        return
    actions = load_client_dialect(path).read_actions({"actions": chunk})
    assert np.allclose(actions[:, 1], expected)
    assert np.all(actions[:, 0] == 7.0)


def test_a_gripper_beyond_the_action_is_named():
    with pytest.raises(ValueError, match=r"dims: expected numbers below 2, the dimensions of the action, got \[6\]"):
        GripperRule((6,), (0, 1), (1, -1)).apply(np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leading_axes: two\n", "leading_axes: expected a number from 0 to 4; got 'two'"),
        ("leading_axes: true\n", "leading_axes: expected a number from 0 to 4; got True"),
        ("reply_axes: -1\n", "reply_axes: expected a number from 0 to 4"),
        ("codec: pickle\n", "codec: expected one of openpi, "),
        ("actions: []\n", "actions: expected a list of"),
        ("actions: [{dim: 1}]\n", "actions: 'key'"),
        ("actions: [{key: a, size: 1}]\n", r"actions: unknown fields \['size'\]"),
        ("gripper: {dims: [6]}\n", "gripper: 'from'"),
        ("gripper: {dims: [6], from: [1, 1], to: [0, 1]}\n", "gripper: from: expected two different values"),
        ("gripper: {dims: [6], from: [0, 1, 2], to: [0, 1]}\n", "gripper: too many values"),
        ("gripper: {dims: [6], from: [0, 1], to: [0, 1], flip: true}\n", r"gripper: unknown fields \['flip'\]"),
        ("observation_key: 3\n", "observation_key: expected a key"),
        ("shape: 3\n", r"unknown fields \['shape'\]"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file, text, message):
    with pytest.raises(ValueError, match=message):
        load_client_dialect(file(BASE + text))


def test_other_names_are_answered_with_the_known_ones(file):
    with pytest.raises(ValueError, match=r"expected one of aloha, droid, gr00t_libero, lerobot, libero or the path"):
        load_client_dialect("openvla")
    with pytest.raises(ValueError, match="not a dialect"):
        load_client_dialect(file("- a list\n"))


def test_a_dialect_for_zeromq_is_refused_for_a_websocket():
    pytest.importorskip(
        "openpi_client", reason="openpi-client is not installed; scripts/install_test_peers.sh brings it"
    )
    from openpi_server import OpenpiServer

    from syvla.evaluation.remote_policy import RemotePolicy

    with (
        OpenpiServer() as server,
        pytest.raises(ValueError, match=r"'gr00t_libero' is for a ZeroMQ server .*tcp://host:port"),
    ):
        RemotePolicy(server.url, ReachEnvironment(), dialect="gr00t_libero", timeout=10.0)
    assert isinstance(load_client_dialect("libero"), ClientDialect)
