"""Who may talk to the server: tokens, web pages, host names, a limit of connections."""

import socket
import time

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from syvla.serving.client.http_client import http_ready
from syvla.serving.server.settings import ServerSettings
from syvla.serving.wire.msgpack_codec import pack


def opened(server):
    client = connect(f"ws://{server.url}", compression=None, max_size=None, ping_interval=None)
    client = client.__enter__()
    client.recv()
    return client


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "robot.local"])
def test_beyond_loopback_a_token_is_required(host):
    with pytest.raises(ValueError, match=f"host: {host} is reachable from other machines, and no token is set"):
        ServerSettings(host=host)
    ServerSettings(host=host, token="secret")
    ServerSettings(host=host, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_no_token_is_needed(host):
    assert ServerSettings(host=host).token is None


def test_settings_do_not_show_the_token():
    assert "secret" not in repr(ServerSettings(token="secret"))


@pytest.mark.parametrize("path", ["/v1/metadata", "/metrics", "/v1/act", "/nothing"])
def test_every_route_but_health_wants_the_token(serve, path):
    server = serve(token="secret")
    for headers in (
        {},
        {"Authorization": "Bearer secre"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
    ):
        answer = httpx.get(f"http://{server.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"].startswith("authorization: expected 'Api-Key TOKEN' or 'Bearer TOKEN'")
    for scheme in ("Bearer", "Api-Key", "bearer"):
        answer = httpx.get(f"http://{server.url}{path}", headers={"Authorization": f"{scheme} secret"})
        assert answer.status_code != 401
    assert httpx.get(f"http://{server.url}/healthz").status_code == 200
    assert http_ready(f"http://{server.url}")


def test_web_pages_are_refused(serve):
    server = serve()
    answer = httpx.get(f"http://{server.url}/v1/metadata", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus), connect(f"ws://{server.url}", origin="http://evil.example"):
        pass


def test_connections_are_limited(serve):
    from websockets.exceptions import InvalidStatus

    server = serve(max_connections=2)
    kept = [opened(server) for _ in range(2)]
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://{server.url}"):
        pass
    assert refused.value.response.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) > 0
    kept[0].close()
    wait_for(lambda: server.service.clients.connections == 1)
    opened(server)


PATHS = ("/healthz", "/readyz", "/v1/metadata", "/metrics", "/rl", "/anything")


def with_host(server, path: str, host: str) -> int:
    return httpx.get(f"http://{server.url}{path}", headers={"Host": host}).status_code


def test_a_server_on_loopback_answers_to_no_other_name_on_any_route(serve, request_of):
    """A page of evil.example, whose name its owner has pointed at 127.0.0.1, sends no Origin with a GET of its own host."""
    server = serve()
    for path in PATHS:
        for host in ("evil.example", f"evil.example:{server.port}", "localhost.evil.example", "127.0.0.1.evil.example"):
            assert with_host(server, path, host) == 421, (path, host)
    for host in ("localhost", f"localhost:{server.port}", "127.0.0.1", f"[::1]:{server.port}", "LOCALHOST."):
        assert with_host(server, "/v1/metadata", host) == 200, host
    body, kind = pack(request_of()), {"Content-Type": "application/msgpack", "Host": "evil.example"}
    assert httpx.post(f"http://{server.url}/v1/act", content=body, headers=kind).status_code == 421
    with (
        pytest.raises(InvalidStatus, match="421"),
        connect(f"ws://evil.example:{server.port}", sock=socket.create_connection(("127.0.0.1", server.port))),
    ):
        pass
    assert server.service.metrics.value("rejected", "cause", "host") == 4 * len(PATHS) + 2


def test_further_names_are_settings(serve):
    server = serve(allowed_hosts=("robot.lan",))
    assert with_host(server, "/v1/metadata", "robot.lan:8000") == 200
    assert with_host(server, "/v1/metadata", "evil.example") == 421
    assert with_host(serve(token="secret"), "/healthz", "any.example") == 200, "the token keeps pages out"
    assert with_host(serve(token="secret", allowed_hosts=("robot.lan",)), "/healthz", "any.example") == 421
    with pytest.raises(ValueError, match="allowed_hosts: expected names without ports"):
        ServerSettings(allowed_hosts=("robot.lan:8000",))
