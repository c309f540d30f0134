"""`/`: a page for a person beside the robot, and what it asks for."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from syvla.serving.contract.requests import RequestError

from .act_service import ActService
from .http_routes import read_body
from .page_headers import own_page
from .route_schemas import BODY, FLAG, JSON, NULLABLE_TEXT, described, fields, lists, record, texts

MOST_CHARACTERS = 1000
"""Longest instruction that a person may type. Ours: far beyond any that robots are trained on."""

_STATUS = described(
    "live_status",
    "What the page shows",
    record(
        {
            "sessions": lists(texts()),
            "session": NULLABLE_TEXT,
            "editable": FLAG,
            "policy_version": texts(),
            "ready": FLAG,
        },
        shown={"type": "object"},
    ),
    refusals=(422, 503),
)
_INSTRUCTION = described(
    "live_instruction",
    "Another instruction for a session, or with null the client's own again",
    record({"session": texts(), "instruction": NULLABLE_TEXT}),
    body={
        JSON: fields(
            ("session", "instruction"),
            session=texts(),
            instruction={
                "anyOf": [
                    {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": MOST_CHARACTERS,
                        "pattern": r"^[^\x00-\x1f\x7f]*[!-~][^\x00-\x1f\x7f]*$",
                    },
                    {"type": "null"},
                ]
            },
        )
    },
    refusals=(*BODY, 404, 409),
)


def live_router(service: ActService) -> APIRouter:
    """The page's routes."""
    router = APIRouter()

    @router.get("/", **described("live_page", "The page for a person beside the robot", "text/html", is_open=True))
    async def page() -> Response:
        return own_page(__package__, "live.html")

    @router.get("/live/status", **_STATUS)
    async def status(session: str | None = None) -> Response:
        policy = service.require_policy()
        described = policy.metadata()["embodiments"]
        robots = {name: (described[name], robot.limits) for name, robot in service.robots(policy).items()}
        found = service.live.describe(robots, session)
        return JSONResponse({**found, "policy_version": policy.version, "ready": service.ready})

    @router.post("/live/instruction", **_INSTRUCTION)
    async def instruction(request: Request) -> Response:
        session, text = _asked(await read_body(service, request))
        if not service.live.editable:
            raise RequestError("instruction: the rollouts of this run keep theirs", status=409, cause="bad_request")
        try:
            service.live.instruct(session, text)
        except KeyError:
            raise RequestError("session: has ended, or never was", status=404, cause="bad_request") from None
        return JSONResponse({"session": session, "instruction": text})

    return router


def _asked(body: bytes) -> tuple[str, str | None]:
    """Session and instruction in a body; None gives the client's own back."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or set(value) != {"session", "instruction"} or not isinstance(value["session"], str):
        raise RequestError('body: expected {"session": name, "instruction": text or null}')
    text = value["instruction"]
    if text is not None:
        text = text.strip() if isinstance(text, str) else ""
        if not 0 < len(text) <= MOST_CHARACTERS or not text.isprintable():
            raise RequestError(f"instruction: expected a text of 1 to {MOST_CHARACTERS} printable characters, or null")
    return value["session"], text
