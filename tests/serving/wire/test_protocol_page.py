"""docs/protocol.md against the code: its example frame, every route, request key, reply key, cause and limit."""

import ast
import json
import re
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from served_policies import CountingPolicy

from syvla.serving import PolicyClient
from syvla.serving.contract.requests import REPORTED_COUNTS, PolicyHolder
from syvla.serving.policy_server import build_app
from syvla.serving.rl.ledger import STATES
from syvla.serving.rl.routes import rl_router
from syvla.serving.server.act_service import ActService
from syvla.serving.server.settings import ServerSettings
from syvla.serving.wire.msgpack_codec import CODECS, DEFAULT_LIMITS, DTYPES, pack, unpack
from syvla.serving.wire.request_reading import OPTIONS, REPORT_FIELDS

ROOT = Path(__file__).resolve().parents[3]
SERVING = ROOT / "serving"
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next heading of the same level."""
    level = title.split()[0]
    return re.split(rf"^{level} ", PAGE.split(f"\n{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def dict_keys(path: Path, *functions: str) -> set[str]:
    """Text keys of the maps that functions of a module build, of assignments to `reply[...]`, and of `setdefault`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    chosen = [node for node in found if node.name in functions]
    assert {node.name for node in chosen} == set(functions), "the functions still have these names"
    keys: list[ast.expr | None] = []
    for node in (inner for function in chosen for inner in ast.walk(function)):
        if isinstance(node, ast.Dict):
            keys += node.keys
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "reply":
            keys.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault":
            keys.append(node.args[0])
    return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def test_the_example_frame_is_what_the_page_says():
    rows = re.search(r"```text\n(82 .*?)```", PAGE, re.DOTALL).group(1).splitlines()
    frame = bytes.fromhex("".join(row.partition("#")[0] for row in rows))
    shown = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL).group(1))
    value, codec = unpack(frame)
    assert codec == "openpi"
    assert {key: np.asarray(entry).tolist() for key, entry in value.items()} == shown
    assert value["observation.state"].dtype == np.float32
    ours = {"observation.state": np.array(shown["observation.state"], np.float32), "prompt": shown["prompt"]}
    assert pack(ours) == frame


def test_every_route_stands_on_the_page():
    app = build_app(ActService(ServerSettings(), PolicyHolder()), [rl_router(None)])
    routes = [inner for route in app.routes for inner in getattr(route, "original_router", app).routes] + app.routes
    served = {
        f"{method} {route.path}"
        for route in routes
        if getattr(route, "methods", None)
        for method in route.methods - {"HEAD", "OPTIONS"}
    }
    assert len(served) >= 20
    on_page = {name for name in named(PAGE) if re.match(r"(GET|POST|PUT|DELETE) /", name)}
    assert on_page == served


def test_every_request_key_is_named():
    named_here = named(section("## Request"))
    assert set(OPTIONS) <= named_here
    first_column = "\n".join(re.findall(r"^\| ([^|]+) \|", section("## Request"), re.MULTILINE))
    assert named(first_column) - set(OPTIONS) == {"observation.images.VIEW", "observation.state", "prompt", "task"}
    assert {*REPORTED_COUNTS, *REPORT_FIELDS} <= named_here


def test_every_reply_key_is_named():
    sent = dict_keys(SERVING / "server" / "act_service.py", "_reply", "_reply_to", "_observe")
    sent |= dict_keys(SERVING / "policies" / "backend.py", "_extras", "_answer_at_once")
    sent |= dict_keys(SERVING / "rl" / "episodes.py", "record", "observe")
    sent |= {"chunk_id", "recording_error"}  # of the recorder
    assert {"actions", "takeover", "observed", "query_age", "request_id", "thought_age", "instruction"} <= sent
    assert sent - {"encode", "total"} <= named(section("## Reply")), "those two are phases for /metrics alone"


def test_a_real_reply_and_real_metadata_have_only_what_the_page_names(serve, request_of, tmp_path):
    server = serve(CountingPolicy(), record=tmp_path / "rollouts")
    with PolicyClient(f"ws://{server.url}") as client:
        client.infer(request_of(session_id="robot"))  # so that the next reply tells how long this one took
        asked = request_of(session_id="robot", request_id="one", think=True)
        reply = client.infer(asked)
        observed = client.infer(request_of(session_id="robot", observe_only=True))
        metadata = client.metadata
    assert {"actions", "thought", "request_id", "episode_id", "chunk_id"} <= set(reply)
    assert observed["observed"] is True
    assert set(reply) | set(observed) <= named(section("## Reply"))
    names = named(section("### Metadata"))
    assert set(metadata) | set(metadata["request_limits"]) | set(metadata["embodiments"]["arm"]) <= names
    assert dict_keys(SERVING / "policies" / "backend.py", "metadata", "_describe") <= names


def test_every_cause_is_named():
    causes = {"bad_request"} | set(re.findall(r"4\d\d: \"(\w+)\"", (SERVING / "server/access_control.py").read_text()))
    for folder in ("server", "rl", "recording"):
        for path in (SERVING / folder).glob("*.py"):
            causes |= set(re.findall(r'cause="(\w+)"', path.read_text(encoding="utf-8")))
    assert len(causes) >= 25
    assert causes <= named(PAGE)


@pytest.mark.parametrize("number", astuple(DEFAULT_LIMITS))
def test_limits_are_the_codec_s(number):
    rows = re.findall(r"^\| [a-z ]+ \| (\d+)", section("## Values in msgpack"), re.MULTILINE)
    assert str(number) in rows
    assert len(rows) == len(astuple(DEFAULT_LIMITS))


def test_codecs_dtypes_and_states_are_named():
    names = named(PAGE)
    assert set(CODECS) <= names
    assert set(STATES) <= names
    assert {dtype.str for dtype in DTYPES.values()} <= names
