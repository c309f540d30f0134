"""PyPI's `openpi-client`, unmodified, against the server."""

import numpy as np
import pytest

websocket_client_policy = pytest.importorskip(
    "openpi_client.websocket_client_policy", reason="scripts/install_test_peers.sh installs it"
)
from openpi_client.action_chunk_broker import ActionChunkBroker  # noqa: E402


def connect(server, **options):
    return websocket_client_policy.WebsocketClientPolicy("127.0.0.1", server.port, **options)


def test_metadata_actions_and_clean_errors_on_one_connection(serve, request_of):
    client = connect(serve())
    metadata = client.get_server_metadata()
    assert metadata["action_horizon"] == 6
    assert metadata["embodiments"]["arm"]["dialects"]["lerobot"]["state"] == {"observation.state": 2}
    reply = client.infer(request_of())
    assert reply["actions"].dtype == np.float32
    np.testing.assert_array_equal(reply["actions"], np.repeat(np.arange(3, 9, dtype=np.float32)[:, None], 2, axis=1))
    assert (reply["seed"], reply["policy_version"]) == (3, "counting")
    assert reply["server_timing"]["infer_ms"] >= 0
    with pytest.raises(RuntimeError, match=r"Error in inference server:\nobservation.state: expected \(2,\) numbers"):
        client.infer(request_of(**{"observation.state": np.zeros(3)}))
    assert client.infer(request_of(seed=9))["actions"][0, 0] == 9, "the connection is usable after an error"
    assert client.infer(request_of())["server_timing"]["prev_total_ms"] > 0


def test_chunks_are_executed_step_by_step(serve, request_of):
    """openpi's broker slices every array of the reply by the step."""
    broker = ActionChunkBroker(connect(serve()), action_horizon=6)
    seen = [broker.infer(request_of())["actions"] for _ in range(7)]
    np.testing.assert_array_equal([action[0] for action in seen], [3, 4, 5, 6, 7, 8, 3])


def test_api_key(serve, request_of):
    from websockets.exceptions import InvalidStatus

    server = serve(token="correct horse")
    assert connect(server, api_key="correct horse").infer(request_of())["seed"] == 3
    for wrong in (None, "correct hors", "correct horse battery"):
        with pytest.raises(InvalidStatus) as refused:
            connect(server, api_key=wrong)
        assert refused.value.response.status_code == 401
        assert b"authorization: expected 'Api-Key TOKEN'" in refused.value.response.body


@pytest.mark.parametrize("path", ["/", "/ws", "/some/where", "/v1/act"])
def test_every_path_upgrades(serve, request_of, path):
    client = websocket_client_policy.WebsocketClientPolicy(f"ws://127.0.0.1:{serve().port}{path}")
    assert client.infer(request_of())["seed"] == 3


def test_libero_clients_need_no_option(serve):
    """As openpi's LIBERO client builds its requests; the dialect is found by the keys."""
    from served_policies import CountingPolicy

    client = connect(serve(CountingPolicy(dim=8)))
    image = np.zeros((224, 224, 3), np.uint8)
    observation = {
        "observation/image": image,
        "observation/wrist_image": image,
        "observation/state": np.zeros(8),
        "prompt": "put the bowl on the plate",
    }
    assert client.infer(observation)["actions"].shape == (6, 8)
    with pytest.raises(RuntimeError, match=r"observation/wrist_image: missing \(the left_wrist view\)"):
        client.infer({key: value for key, value in observation.items() if "wrist" not in key})
