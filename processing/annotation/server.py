"""The routes behind the pages of `syvla-annotate` and `syvla-look`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from .access import PAGE_HEADERS, AccessControl
from .annotator import Annotator, ConflictError
from .copying import copy_subtasks
from .episode_list import SHOWN, list_episodes
from .episode_view import MotionScales, dataset_view, episode_view
from .look import Look

MAX_BODY_BYTES = 2**20
SIDES = (160, 320, 640, 1280)
"""Sizes of pictures that the page may ask for, the longer side in pixels."""

Ask = Callable[[int], str | None]
"""Asks a vision server about an episode and keeps its proposal; the reason where there is none."""


class BadRequest(ValueError):
    """A request that is refused, with the reason."""


def build_app(
    annotator: Annotator, *, token: str | None = None, ask: Ask | None = None, look: Look | None = None
) -> FastAPI:
    """The page's application.

    Args:
        annotator: The dataset's sub-tasks; one opened for a look only answers no change.
        token: What requests must send; None: none.
        ask: See `Ask`; None: there is no vision server.
        look: What `syvla-look` shows beside the sub-tasks.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(AccessControl, token=token)
    scales = MotionScales(annotator.data)

    @app.exception_handler(BadRequest)
    async def refused(_: Request, error: BadRequest) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(ConflictError)
    async def conflict(_: Request, error: ConflictError) -> Response:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(OSError)
    async def failed(_: Request, error: OSError) -> Response:
        return JSONResponse({"error": f"the change could not be saved: {error}"}, 507)

    @app.get("/")
    async def page() -> Response:
        text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        return Response(text, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    app.include_router(_reading_routes(annotator, scales, asks=ask is not None, look=look))
    if look is not None:
        app.include_router(_look_routes(look))
    actions = _actions(annotator, scales, ask)

    @app.post("/api/{action}")
    async def act(action: str, request: Request) -> Response:
        if action not in actions:
            return JSONResponse({"error": f"action: expected one of {list(actions)}"}, 404)
        body = await _body(request)
        try:
            return await run_in_threadpool(actions[action], body)
        except (BadRequest, ConflictError):
            raise
        except ValueError as error:
            raise BadRequest(str(error)) from error

    return app


def _reading_routes(annotator: Annotator, scales: MotionScales, *, asks: bool, look: Look | None) -> APIRouter:
    """What the page shows."""
    router, data = APIRouter(prefix="/api"), annotator.data

    def episode_of(request: Request) -> int:
        return _number(request.query_params.get("episode"), "episode", data.num_episodes)

    @router.get("/dataset")
    def dataset() -> Response:
        model = None if look is None or look.model is None else dict(look.model.views)
        return _json({**dataset_view(annotator, asks=asks), "look": look is not None, "model_views": model})

    @router.get("/status")
    def status() -> Response:
        return _json(annotator.status())

    @router.get("/episodes")
    def episodes(request: Request) -> Response:
        query = request.query_params
        start = _number(query.get("start", "0"), "start", 2**31)
        count = _number(query.get("count", "100"), "count", 1001)
        if (shown := query.get("show", "all")) not in SHOWN:
            raise BadRequest(f"show: expected one of {SHOWN}, got {shown!r:.40}")
        flagged = set() if look is None else look.flagged()
        return _json(list_episodes(annotator, shown, query.get("search", "")[:200], start, count, flagged))

    @router.get("/episode")
    def episode(request: Request) -> Response:
        return _json(episode_view(annotator, scales, episode_of(request)))

    @router.get("/frame")
    def frame(request: Request) -> Response:
        query, of = request.query_params, episode_of(request)
        camera, at = query.get("camera"), _number(query.get("frame"), "frame", data.length(of))
        side = _number(query.get("side", "640"), "side", 2**16)
        if camera not in data.cameras or side not in SIDES:
            raise BadRequest(f"camera, side: expected one of {data.cameras} and one of {SIDES}")
        try:
            picture = data.pictures.jpeg(of, at, camera, side)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 500)
        return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return router


def _look_routes(look: Look) -> APIRouter:
    """What `syvla-look` shows beside the sub-tasks."""
    router, data = APIRouter(prefix="/api/look"), look.data

    @router.get("/overview")
    def overview() -> Response:
        return _json(look.overview())

    @router.get("/episode")
    def episode(request: Request) -> Response:
        return _json(look.episode(_number(request.query_params.get("episode"), "episode", data.num_episodes)))

    @router.get("/frame")
    def frame(request: Request) -> Response:
        query = request.query_params
        of = _number(query.get("episode"), "episode", data.num_episodes)
        at, camera = _number(query.get("frame"), "frame", data.length(of)), query.get("camera")
        if camera not in data.cameras or look.model is None:
            raise BadRequest(f"camera: expected one of {data.cameras}, and a command that was started with --model")
        try:
            jpegs = look.model_jpegs(of, at, camera, SIDES[-1])
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 500)
        pictures = {name: base64.b64encode(jpeg).decode() for name, jpeg in jpegs.items()}
        return _json({name: f"data:image/jpeg;base64,{text}" for name, text in pictures.items()})

    return router


def _actions(
    annotator: Annotator, scales: MotionScales, ask: Ask | None
) -> dict[str, Callable[[dict[str, Any]], Response]]:
    """What the page may change, by name; each takes the JSON object that the page sends."""

    def of(body: dict[str, Any]) -> int:
        return _number(body.get("episode"), "episode", annotator.data.num_episodes)

    def revision(body: dict[str, Any]) -> int:
        return _number(body.get("revision"), "revision", 2**31)

    def view(episode: int) -> Response:
        return _json(episode_view(annotator, scales, episode))

    def change(body: dict[str, Any]) -> Response:
        annotator.change(_text(body, "name"), {of(body): body.get("subtasks")}, {of(body): revision(body)})
        return view(of(body))

    def copy(body: dict[str, Any]) -> Response:
        choices = {name: body.get(name) is True for name in ("replace", "as_proposals")}
        return _json({"episodes": copy_subtasks(annotator, scales, of(body), _text(body, "targets"), **choices)})

    def step(body: dict[str, Any]) -> Response:
        return _json({"episodes": annotator.undo() if body.get("back") is True else annotator.redo()})

    def proposal(body: dict[str, Any]) -> Response:
        if body.get("accept") is True:
            annotator.accept(of(body), revision(body))
        else:
            annotator.dismiss(of(body))
        return view(of(body))

    def asked(body: dict[str, Any]) -> Response:
        if ask is None:
            raise BadRequest("ask: no vision server; start the command with --server URL")
        if problem := ask(of(body)):
            return JSONResponse({"error": problem}, 502)
        return view(of(body))

    return {"subtasks": change, "copy": copy, "step": step, "proposal": proposal, "ask": asked}


def _number(value: Any, name: str, limit: int) -> int:
    text = str(value)
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) >= limit:
        raise BadRequest(f"{name}: expected a number from 0 to {limit - 1}, got {text!r:.40}")
    return int(text)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request sends, its size checked while it arrives."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise BadRequest("content-type: expected application/json")
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > MAX_BODY_BYTES:
            raise BadRequest(f"body: expected at most {MAX_BODY_BYTES} bytes")
    try:
        value = json.loads(received)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("body: expected a JSON object")
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str) or len(value) > 2000:
        raise BadRequest(f"{name}: expected a text")
    return value


def _json(value: Any) -> Response:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})
