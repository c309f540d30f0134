import socket
import threading

import pytest

from syvla.serving.client.http_client import http_json
from syvla.serving.client.retries import ClientOptions, PolicyError
from syvla.serving.client.rl_client import RLClient

BODY = b'{"status": "ok"}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + BODY
REFUSAL = b'HTTP/1.1 409 Conflict\r\nContent-Length: 21\r\n\r\n{"cause": "conflict"}'


@pytest.fixture
def answers():
    """Starts a server that answers each connection with the next of these bytes and closes it; returns its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def serve(*replies):
        def work():
            for reply in replies:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    listener.close()


CUT = {
    "after the headers": WHOLE[: -len(BODY)],
    "within the body": WHOLE[:-3],
    "within the headers": WHOLE[:24],
    "before a byte": b"",
    "within a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
    "within a refusal": REFUSAL[:-5],
}


@pytest.mark.parametrize("reply", CUT.values(), ids=CUT)
def test_a_cut_answer_is_a_lost_connection(answers, reply):
    with pytest.raises(OSError):
        http_json(answers(reply), "/rl/status")


@pytest.mark.parametrize("reply", CUT.values(), ids=CUT)
def test_a_request_whose_answer_was_cut_is_sent_again(answers, reply):
    client = RLClient(answers(reply, WHOLE), options=ClientOptions(retries=1, backoff=0.01))
    assert client.status() == {"status": "ok"}


def test_a_whole_refusal_is_a_refusal(answers):
    with pytest.raises(PolicyError, match="HTTP 409") as error:
        http_json(answers(REFUSAL), "/rl/status")
    assert (error.value.status, error.value.cause) == (409, "conflict")
