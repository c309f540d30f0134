"""OpenAPI descriptions of the server's routes, made of the limits that the code checks. No torch.

`described` gives the keyword arguments of a route's decorator, from which FastAPI builds the document; `complete` adds what
all routes share. `python -m syvla.serving.openapi_document` writes it to docs/openapi.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response

from syvla.serving.contract.requests import MOST_REPORTED_STEPS, REPORTED_COUNTS
from syvla.serving.wire.dialects import MAX_MAGNITUDE, MAX_PROMPT_LENGTH
from syvla.serving.wire.msgpack_codec import DEFAULT_LIMITS, DTYPES
from syvla.serving.wire.request_reading import MAX_GUIDANCE_WEIGHT, MAX_NAME_LENGTH, MAX_SEED, OptionCaps

Schema = dict[str, Any]

JSON, MSGPACK, TEXT = "application/json", "application/msgpack", "text/plain"

STATUSES = {
    401: "No token, or another one than the server's.",
    403: "A request of a web page that is not the server's own.",
    404: "There is no such thing here.",
    408: "The body was not complete in time.",
    409: "Not in the present state.",
    410: "The episode was aborted or stopped: stop the robot.",
    421: "Addressed under a name that is not allowed.",
    422: "Something is wrong with the request; the text names the key, what was expected and what came.",
    500: "A fault of the server, or actions that must not leave it.",
    503: "Not now; Retry-After says when another attempt makes sense.",
    507: "The disk does not take it: it does not count.",
}
EVERYWHERE = (401, 403, 421)
"""What access control answers in front of every route that needs the token."""
BODY = (408, 422, 503)
"""What reading a body may end in."""


def described(
    name: str,
    summary: str,
    answer: Schema | str | None = None,
    *,
    body: Mapping[str, Schema] | None = None,
    refusals: tuple[int, ...] = (),
    status: int = 200,
    also: tuple[str, ...] = (),
    is_open: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of a route's decorator.

    Args:
        name: The operation's name, unique among all routes.
        summary: What the route does, one line.
        answer: Schema of the JSON answer, or the media type of another one.
        body: Media type to the schema of the body; None: the route reads none.
        refusals: Statuses of refusals beside those of access control.
        status: Of the answer.
        also: Further media types of the answer.
        is_open: Whether everyone may ask, without the token.
    """
    kind = answer if isinstance(answer, str) else JSON
    content: dict[str, Schema] = {kind: {"schema": answer if isinstance(answer, dict) else {"type": "string"}}}
    content |= {other: {} for other in also}
    statuses = sorted({*refusals, 421} if is_open else {*refusals, *EVERYWHERE})
    responses: dict[int, Any] = {status: {"description": "Done.", "content": content}}
    responses |= {refusal: _refusal(refusal) for refusal in statuses}
    more: Schema = {"security": [] if is_open else [{}, {"token": []}]}
    if body is not None:
        more["requestBody"] = {"content": {media: {"schema": schema} for media, schema in body.items()}}
        # Without required keys, an empty body counts as an empty object.
        more["requestBody"]["required"] = MSGPACK in body or any("required" in schema for schema in body.values())
    return {
        "operation_id": name,
        "summary": summary,
        "status_code": status,
        "response_class": JSONResponse if kind == JSON else type("_", (Response,), {"media_type": kind}),
        "responses": responses,
        "openapi_extra": more,
    }


def _refusal(status: int) -> Schema:
    refusal: Schema = {"description": STATUSES[status], "content": {JSON: {"schema": reference("Error")}}}
    if status == 503:
        refusal["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return refusal


def reference(name: str) -> Schema:
    """A schema of `complete`'s components."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    """An answer's object. Further keys may come with later releases."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def fields(required: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """A body's object, which has no other keys."""
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
    }


def maybe(schema: Schema) -> Schema:
    """The schema, or null, which means the same as leaving the key out."""
    return {"anyOf": [schema, {"type": "null"}]}


def texts(*among: str) -> Schema:
    """A text; one of `among` if any are given."""
    return {"type": "string", **({"enum": list(among)} if among else {})}


def lists(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def integer(low: int, high: int | None = None) -> Schema:
    """An integer from `low` to `high`."""
    return {"type": "integer", "minimum": low, **({} if high is None else {"maximum": high})}


FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
FLOAT32: Schema = {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}
PHYSICAL: Schema = {"type": "number", "minimum": -MAX_MAGNITUDE, "maximum": MAX_MAGNITUDE}
NULLABLE_NUMBER: Schema = {"type": ["number", "null"]}
NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH, "pattern": r"^[^\x00-\x1f\x7f]+$"}
MATRIX: Schema = lists(lists(NUMBER))

_BASE64 = {"type": "string", "contentEncoding": "base64"}
_DTYPES = sorted(
    {order.str for dtype in DTYPES.values() for order in (dtype.newbyteorder("<"), dtype.newbyteorder(">"))}
    | {dtype.name for dtype in DTYPES.values()}
)


def request_properties(caps: OptionCaps) -> dict[str, Schema]:
    """The options of a request, see docs/protocol.md."""
    options = {
        "seed": integer(0, MAX_SEED),
        "think": {"anyOf": [FLAG, integer(1, 10**6)]},
        "max_new_tokens": integer(1, caps.max_new_tokens),
        "num_steps": integer(1, caps.num_steps),
        "noise": reference("Chunk"),
        "embodiment": NAME,
        "session": NAME,
        "session_id": NAME,
        "episode_id": NAME,
        "reset": FLAG,
        "deadline_ms": {"type": "number", "exclusiveMinimum": 0},
        "request_id": NAME,
        "executed_steps": integer(0, 10**6),
        "observe_only": FLAG,
        "intervention": FLAG,
        "action": reference("Vector"),
        "prev_chunk": reference("Chunk"),
        "delay_steps": integer(0),
        "max_guidance_weight": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_GUIDANCE_WEIGHT},
        "known_actions": FLAG,
        "client_report": reference("ClientReport"),
    }
    return {name: maybe(schema) for name, schema in options.items()}


def _only_with(name: str, **others: Schema) -> Schema:
    """An option that asks for nothing (null or false), or for the others beside it."""
    asks_nothing = {"properties": {name: {"enum": [None, False]}}}
    return {"anyOf": [asks_nothing, {"properties": others, "required": list(others)}]}


NOISE_OR_OBSERVATION: tuple[tuple[str, tuple[bool, ...]], ...] = (("noise", ()), ("observe_only", (False,)))
"""Two options of which one must ask for nothing."""


def _act_request() -> Schema:
    instruction = {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT_LENGTH, "pattern": r"[^\s\x1c-\x1f]"}
    own = {"observation.state": reference("Vector"), "prompt": instruction, "task": instruction}
    return {
        "description": "An observation in the native dialect, and options. /v1/metadata names views, dimensions and caps "
        "of the served robot, and the keys of the other dialects, whose requests are not described here.",
        "type": "object",
        "properties": {**own, **request_properties(OptionCaps())},
        "patternProperties": {r"^observation\.images\.": reference("Image")},
        "additionalProperties": False,
        "required": ["observation.state"],
        "oneOf": [{"required": ["prompt"]}, {"required": ["task"]}],
        "dependentSchemas": {
            "delay_steps": _only_with("delay_steps", prev_chunk={"not": {"type": "null"}}),
            "max_guidance_weight": _only_with("max_guidance_weight", prev_chunk={"not": {"type": "null"}}),
            "known_actions": _only_with("known_actions", prev_chunk={"not": {"type": "null"}}),
            "noise": {"anyOf": [{"properties": {name: {"enum": [None, *no]}}} for name, no in NOISE_OR_OBSERVATION]},
            "intervention": _only_with("intervention", action={"not": {"type": "null"}}, observe_only={"const": True}),
            "action": _only_with("action", intervention={"const": True}),
        },
    }


def _act_reply() -> Schema:
    chunk = {
        "actions": MATRIX,
        "thought": NULLABLE_TEXT,
        "thought_age": {"type": ["integer", "null"]},
        "policy_version": texts(),
        "seed": maybe(integer(0, MAX_SEED)),
        "embodiment": texts(),
        "limits_applied": lists(texts()),
        "timings_ms": {"type": "object", "additionalProperties": NUMBER},
        "policy_timing": record({"infer_ms": NUMBER}),
        "server_timing": record({"infer_ms": NUMBER}, prev_total_ms=NUMBER),
    }
    recorded = {"episode_id": texts(), "chunk_id": texts(), "recording_error": texts(), "takeover": FLAG}
    more = {"request_id": NAME, "instruction": texts(), "frozen_steps": integer(0)}
    ages = {"query_age": NUMBER, "query_age_calls": integer(0)}
    observed = record({"observed": {"const": True}}, request_id=NAME, **recorded)
    return {"anyOf": [record(chunk, **more, **ages, **recorded), observed]}


def _metadata() -> Schema:
    robot = record(
        {
            "state_dim": integer(1),
            "action_dim": integer(1),
            "dialects": {"type": "object"},
            "limits": {"type": "object"},
        }
    )
    caps = ("max_message_bytes", "max_array_bytes", "max_pixels", "max_memory_bytes", "max_new_tokens", "num_steps")
    return record(
        {
            "model": texts(),
            "policy_version": texts(),
            "protocol_version": {"const": 1},
            "action_horizon": integer(1),
            "views": lists(texts()),
            "embodiments": {"type": "object", "additionalProperties": robot},
            "request_limits": record({name: integer(1) for name in caps} | {"deadline_s": NUMBER}),
        }
    )


def _arrays() -> dict[str, Schema]:
    encoded = fields(
        ("data", "dtype", "shape"),
        data=_BASE64,
        dtype=texts(*_DTYPES),
        shape=lists(integer(0), maxItems=DEFAULT_LIMITS.max_array_dims),
    )
    images = [fields((kind,), **{kind: _BASE64}) for kind in ("jpeg", "png")]
    rows = lists(lists(PHYSICAL, minItems=1), minItems=1)
    report = fields(
        counts=fields(**{name: integer(0, 2**53 - 1) for name in REPORTED_COUNTS}),
        first=integer(0, 2**53 - 1),
        executed=maybe(lists(lists(FLOAT32), maxItems=MOST_REPORTED_STEPS)),
        limited=maybe(lists(lists(FLAG), maxItems=MOST_REPORTED_STEPS)),
        chunk_age_s=maybe({"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}),
        seam=maybe({"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}),
    )
    return {
        "Encoded": {"description": "Bytes of an array in C order.", **encoded},
        "Image": {
            "description": "uint8 (H, W, 3) or (3, H, W), a float array of such a shape in [0, 1], or an image file.",
            "anyOf": [*images, reference("Encoded")],
        },
        "Vector": {"anyOf": [lists(PHYSICAL, minItems=1), reference("Encoded")]},
        "Chunk": {"description": "(steps, dimensions)", "anyOf": [rows, reference("Encoded")]},
        "ClientReport": {"description": "What the robot executed.", **report},
    }


def components() -> dict[str, Schema]:
    """The schemas to which `reference` points."""
    return {
        "Error": record({"error": texts()}, cause=texts()),
        "ActRequest": _act_request(),
        "ActReply": _act_reply(),
        "Metadata": _metadata(),
        **_arrays(),
    }


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Adds the shared schemas and the token to what FastAPI has gathered from the routes."""
    refusals = {f"refused_{status}": _refusal(status) for status in STATUSES}
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for status, response in operation["responses"].items():
            if response == refusals.get(f"refused_{status}"):
                operation["responses"][status] = {"$ref": f"#/components/responses/refused_{status}"}
    token = {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Api-Key TOKEN or Bearer TOKEN"}
    document["components"] = {"schemas": components(), "responses": refusals, "securitySchemes": {"token": token}}
    return document
