"""Routes of a run of reinforcement learning, beside those of the policy server: episodes, rewards, policies, a page.

Robots act through `POST /v1/act` or the websocket, with `episode_id`, and `executed_steps`: how many actions of the
previous chunk ran. See `RLScheduler` for what the routes do.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from syvla.serving.contract.requests import RequestError
from syvla.serving.server.http_routes import read_body
from syvla.serving.server.page_headers import own_page
from syvla.serving.wire.request_reading import whole

from . import route_schemas
from .playback import last_frames, played_frames, read_guidance
from .scheduler import RLScheduler

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHOWN_STEPS = 4
"""Last observations of a rollout that the page shows. Ours: they fill a row."""


def rl_router(scheduler: RLScheduler) -> APIRouter:
    """The routes of a run. `scheduler.service` must be set before the first request."""
    router = APIRouter()
    _add_routes_of_people(router, scheduler)

    @router.get("/rl", **route_schemas.PAGE)
    async def page() -> Response:
        return own_page(__package__, "page.html")

    @router.get("/rl/status", **route_schemas.STATUS)
    async def status() -> Response:
        return JSONResponse(await _done(scheduler.status))

    @router.post("/rl/episodes", **route_schemas.BEGIN)
    async def begin(request: Request) -> Response:
        body = await _body(scheduler, request, request_id=str)
        return JSONResponse(await _done(scheduler.begin, body.get("request_id")), status_code=201)

    @router.get("/rl/episodes/{name}", **route_schemas.EPISODE)
    async def episode(name: str) -> Response:
        return JSONResponse(await _done(_described, scheduler, name))

    @router.post("/rl/episodes/{name}/end", **route_schemas.END)
    async def end(name: str, request: Request) -> Response:
        body = await _body(scheduler, request, executed_steps=int, timed_out=bool)
        executed, timed_out = body.get("executed_steps"), body.get("timed_out", False)
        ended = await _done(scheduler.episodes.end, name, executed, timed_out)
        decisions = ended.facts.decisions if ended.facts is not None else 0
        return JSONResponse({"episode_id": name, "state": scheduler.state_of(name), "decisions": decisions})

    @router.post("/rl/episodes/{name}/reward", **route_schemas.REWARD)
    async def reward(name: str, request: Request) -> Response:
        body = await _body(scheduler, request, reward=object, override=bool, timed_out=bool)
        override, timed_out = body.get("override", False), body.get("timed_out")
        given: Any = body.get("reward")
        return JSONResponse(await _done(scheduler.label, name, given, override, timed_out))

    @router.post("/rl/episodes/{name}/abort", **route_schemas.ABORT)
    async def abort(name: str, request: Request) -> Response:
        body = await _body(scheduler, request, reason=str)
        why = body.get("reason", "by request")[:200]
        return JSONResponse(await _done(scheduler.abort, name, why))

    @router.post("/rl/policy", **route_schemas.POLICY)
    async def policy(request: Request) -> Response:
        body = await _body(scheduler, request, version=str)
        if "version" not in body:
            raise RequestError("version: expected the name of a folder of the run's policies, such as v0003")
        return JSONResponse(await _done(scheduler.publish, body["version"]))

    @router.post("/rl/rollback", **route_schemas.ROLLBACK)
    async def rollback(request: Request) -> Response:
        body = await _body(scheduler, request, version=str)
        return JSONResponse(await _done(scheduler.rollback, body.get("version")))

    return router


def _add_routes_of_people(router: APIRouter, scheduler: RLScheduler) -> None:
    """What a person does with one episode besides labeling it."""

    @router.post("/rl/episodes/{name}/stop", **route_schemas.STOP)
    async def stop(name: str, request: Request) -> Response:
        await _body(scheduler, request)
        await _done(scheduler.episodes.stop, name)
        return JSONResponse({"episode_id": name, "state": scheduler.state_of(name)})

    @router.post("/rl/episodes/{name}/takeover", **route_schemas.TAKEOVER)
    async def takeover(name: str, request: Request) -> Response:
        wanted = (await _body(scheduler, request, on=bool)).get("on", True)
        await _done(scheduler.episodes.ask_for_takeover, name, wanted)
        return JSONResponse({"episode_id": name, "takeover": wanted})

    @router.get("/rl/episodes/{name}/guidance", **route_schemas.GUIDANCE)
    async def guidance(name: str) -> Response:
        if name not in scheduler.episodes.episodes:
            raise RequestError(f"episode {name[:60]!r}: is not known here", status=404, cause="no_episode")
        return JSONResponse(await _done(read_guidance, scheduler.settings.run, name))

    @router.get("/rl/episodes/{name}/frames", **route_schemas.FRAMES)
    async def frames(name: str, first: Annotated[int, Query(ge=0)] = 0) -> Response:
        return JSONResponse(await _done(_played, scheduler, name, first))

    @router.post("/rl/episodes/{name}/discard", **route_schemas.DISCARD)
    async def discard(name: str, request: Request) -> Response:
        body = await _body(scheduler, request, reason=str)
        why = body.get("reason", "by request")[:200]
        return JSONResponse(await _done(scheduler.discard, name, why))

    @router.post("/rl/episodes/{name}/restore", **route_schemas.RESTORE)
    async def restore(name: str, request: Request) -> Response:
        await _body(scheduler, request)
        return JSONResponse(await _done(scheduler.restore, name))


async def _done(work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)` in a thread. Raises RequestError where the disk does not take it (507): it does not count."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        logger.error("%s", error)
        text = (
            f"disk: the run's folder cannot be written ({error.strerror or error}); free some space and send it again"
        )
        raise RequestError(text, status=507, cause="disk") from None


async def _body(scheduler: RLScheduler, request: Request, **fields: type) -> dict[str, Any]:
    """The JSON object of a request; an empty body is an empty one. Raises RequestError for anything but `fields`."""
    service = scheduler.service
    assert service is not None
    text = await read_body(service, request)
    try:
        body = json.loads(text, object_pairs_hook=_once) if text.strip() else {}
    except (ValueError, RecursionError):
        raise RequestError("message: expected a JSON object, got something else") from None
    if not isinstance(body, dict):
        raise RequestError(f"message: expected a JSON object, got {type(body).__name__}")
    for name, value in body.items():
        kind = fields.get(name)
        if kind is int:
            value = body[name] = whole(value)
        if kind is None:
            raise RequestError(f"{name[:60]}: is not known here; expected {sorted(fields)}")
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise RequestError(f"{name}: expected {kind.__name__}, got {value!r:.60}")
    return body


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A map with distinct keys: of two rewards, `json` would take the later one in silence."""
    body = dict(pairs)
    if len(body) != len(pairs):
        twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
        raise RequestError(f"{twice[:60]}: expected once, got it several times")
    return body


def _described(scheduler: RLScheduler, name: str) -> dict[str, Any]:
    """State of an episode; once it has ended, its facts and last frames as JPEG data URLs, oldest first."""
    episode = scheduler.episodes.episodes.get(name)
    if episode is None:
        raise RequestError(f"episode {name[:60]!r}: is not known here", status=404, cause="no_episode")
    described = {"episode_id": name, "state": scheduler.state_of(name), "policy_version": episode.version}
    entry = scheduler.episodes.ledger.read().rollouts.get(name)
    described["why"] = episode.why or (entry.why if entry is not None else "")
    facts = episode.facts
    if facts is None:
        return {**described, "frames": []}
    frames = _read(scheduler, name, lambda folder: last_frames(folder, SHOWN_STEPS))
    shown = ("instruction", "outcome", "ended", "decisions", "corrections")
    return {**described, **{key: getattr(facts, key) for key in shown}, "frames": frames}


def _played(scheduler: RLScheduler, name: str, first: int) -> dict[str, Any]:
    """See `played_frames`."""
    episode = scheduler.episodes.episodes.get(name)
    if episode is None or episode.facts is None:
        raise RequestError(f"episode {name[:60]!r}: has no frames here", status=404, cause="no_episode")
    return {"episode_id": name, **_read(scheduler, name, lambda folder: played_frames(folder, first))}


def _read(scheduler: RLScheduler, name: str, read: Callable[[Path], T]) -> T:
    """`read(folder)` of a rollout, from its new place where somebody discards or restores it meanwhile."""
    episodes = scheduler.episodes
    while True:
        with episodes.lock:  # it is moved under this lock, which reading would hold for too long
            folder = episodes.folder(name)
        try:
            return read(folder)
        except (OSError, ValueError):
            with episodes.lock:
                if episodes.folder(name) == folder:
                    raise
