"""docs/openapi.json is what the code says, and what the running server keeps to: schemathesis asks it on every route."""

import base64
import io
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from rl_robot import Robot

from syvla.serving.openapi_document import main, openapi_document
from syvla.serving.policies.backend import SyVLABackend
from syvla.serving.server.route_schemas import components
from syvla.serving.wire.request_reading import OPTIONS, OptionCaps

ROOT = Path(__file__).resolve().parents[2]
PICTURE = io.BytesIO()
Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(PICTURE, "PNG")
IMAGES = [
    {"png": base64.b64encode(PICTURE.getvalue()).decode()},
    {"data": base64.b64encode(bytes(192)).decode(), "dtype": "|u1", "shape": [8, 8, 3]},
]
LONGER = "SYVLA_FUZZ_CASES" in os.environ  # every boundary of every key as well: several hundred requests
AMOUNT = ["--phases", "coverage,fuzzing" if LONGER else "fuzzing", "--max-examples", "30" if LONGER else "8"]
CONFIG = """
[warnings]
enabled = false
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "410", "503"]
[phases.coverage]
unexpected-methods = ["DELETE", "TRACE"]
[generation]
codec = "ascii"
allow-x00 = false
"""
"""503 with Retry-After is no fault. A name of no episode, or of one in another state, is no fault of the body either."""


def test_the_committed_file_is_what_the_command_writes(tmp_path):
    assert main([str(tmp_path / "openapi.json")]) == 0
    written = json.loads((tmp_path / "openapi.json").read_text(encoding="utf-8"))
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert written == committed, "write it anew: python -m syvla.serving.openapi_document docs/openapi.json"


def test_every_option_of_a_request_is_described():
    described = set(components()["ActRequest"]["properties"])
    assert described - {"observation.state", "prompt", "task"} == set(OPTIONS)


def test_a_server_serves_its_own_document_to_who_has_the_token(serve):
    server = serve(token="secret")
    url = f"http://{server.url}/openapi.json"
    assert httpx.get(url).status_code == 401
    served = httpx.get(url, headers={"Authorization": "Bearer secret"}).json()
    whole = openapi_document()
    assert served["paths"] == {path: entry for path, entry in whole["paths"].items() if not path.startswith("/rl")}


@pytest.mark.parametrize(("path", "status"), [("/v2/act", 404), ("/v1/act", 405)])
def test_what_no_route_takes_is_answered_as_other_refusals(serve, path, status):
    answer = httpx.get(f"http://{serve().url}{path}")
    assert answer.status_code == status
    assert answer.json()["error"].startswith(f"route: no GET {path} here")
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


@pytest.mark.parametrize("first", ["x", "-1", "9" * 5000])
def test_a_query_that_cannot_be_read_is_answered_as_other_refusals(serve_run, first):
    robot = Robot(serve_run())
    answer = httpx.get(f"{robot.url}/rl/episodes/one/frames", params={"first": first})
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "cause"}
    assert answer.json()["error"].startswith("first: ")


def narrowed(document: dict, metadata: dict) -> dict:
    """The document with what a server's metadata adds: views, dimensions, caps. Data that no schema can describe, such as
    bytes of an image file, is given as examples."""
    document = deepcopy(document)
    ((name, robot),) = metadata["embodiments"].items()
    schemas, caps = document["components"]["schemas"], metadata["request_limits"]
    rows = {**schemas["Vector"]["anyOf"][0], "minItems": robot["state_dim"], "maxItems": robot["state_dim"]}
    report = schemas["ClientReport"]["properties"]
    schemas |= {"Image": {"enum": IMAGES}, "Vector": rows, "Chunk": {"type": "array", "items": rows, "minItems": 1}}
    report["executed"], report["limited"] = {"const": None}, {"const": None}
    request = schemas["ActRequest"]
    own = request["properties"]
    own |= {f"observation.images.{view}": {"$ref": "#/components/schemas/Image"} for view in metadata["views"]}
    del request["patternProperties"]
    optional = robot["dialects"]["lerobot"]["optional"]
    request["required"] += [f"observation.images.{view}" for view in metadata["views"] if view not in optional]
    own["embodiment"] = {"enum": [name, None]}
    for key, most in (("max_new_tokens", caps["max_new_tokens"]), ("num_steps", caps["num_steps"]), ("delay_steps", 1)):
        own[key]["anyOf"][0]["maximum"] = most
    # Without --record nothing is observed; guidance and known actions belong to policies that were trained for them.
    for key in ("observe_only", "intervention"):
        own[key] = {"enum": [False, None]}
    del own["action"], own["known_actions"]
    for key in ("action", "known_actions", "intervention"):
        del request["dependentSchemas"][key]
    return document


def ask(document: dict, url: str, folder: Path) -> None:
    """Runs schemathesis on a document; its report is the failure's text."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install 'syvla[test]'")
    (folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", url, "--seed", "1"]
    command += ["--generation-database", "none", "--no-color", *AMOUNT]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: " in done.stdout, done.stdout


@pytest.mark.slow
def test_a_real_server_keeps_to_the_document(serve, tmp_path):
    policy = SyVLABackend.from_pretrained(str(ROOT / "checkpoints" / "tabletop-lift"), device="cpu")
    server = serve(policy, caps=OptionCaps(max_new_tokens=2, num_steps=2))
    url = f"http://{server.url}"
    document = narrowed(httpx.get(f"{url}/openapi.json").json(), httpx.get(f"{url}/v1/metadata").json())
    ask(document, url, tmp_path)


@pytest.mark.slow
def test_a_real_run_keeps_to_the_document(serve_run, tmp_path):
    robot = Robot(serve_run(graded_rewards=True, rollouts_per_update=100))
    ended, labeled, dropped, opened = robot.rollout(), robot.rollout(), robot.begin(), robot.begin()
    robot.call(f"/rl/episodes/{labeled}/reward", {"reward": 1})
    robot.call(f"/rl/episodes/{dropped}/abort", {})
    robot.act(opened)
    document = httpx.get(f"{robot.url}/openapi.json").json()
    document["paths"] = {path: entry for path, entry in document["paths"].items() if path.startswith("/rl/")}
    for entry in document["paths"].values():
        for parameter in next(iter(entry.values())).get("parameters", []):
            if parameter["name"] == "name":
                parameter["schema"] = {"enum": [ended, labeled, dropped, opened, "unknown"]}
            else:
                parameter["schema"]["maximum"] = 1  # each ended rollout has one observation
    for path in ("/rl/policy", "/rl/rollback"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        body["properties"]["version"] = {"enum": ["v0000"]}
    ask(document, robot.url, tmp_path)
