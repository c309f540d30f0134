"""The server's HTTP side: act, health, readiness, metadata, metrics."""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect

from syvla.serving.contract.requests import RequestError

from .act_service import ActService
from .connection_guards import Holding
from .route_schemas import BODY, JSON, MSGPACK, TEXT, described, reference

logger = logging.getLogger(__name__)

_MSGPACK = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")

_READYZ = described("readyz", "Whether requests are answered now", TEXT, is_open=True)
_READYZ["responses"][503] = {"description": "loading or stopping", "content": {TEXT: {"schema": {"type": "string"}}}}
_ACT = described(
    "act",
    "The next actions for an observation",
    reference("ActReply"),
    body={JSON: reference("ActRequest"), MSGPACK: {"description": "The same, see docs/protocol.md"}},
    refusals=(*BODY, 404, 409, 410, 500, 507),
    also=(MSGPACK,),
)


def http_router(service: ActService) -> APIRouter:
    """The routes of one service."""
    router = APIRouter()

    @router.get("/healthz", **described("healthz", "Whether the process runs", TEXT, is_open=True))
    async def healthz() -> Response:
        return PlainTextResponse("OK\n")

    @router.get("/readyz", **_READYZ)
    async def readyz() -> Response:
        if service.ready:
            return PlainTextResponse("ready\n")
        state = "stopping" if service.draining else "loading"
        return PlainTextResponse(f"{state}\n", status_code=503, headers={"Retry-After": "2"})

    @router.get(
        "/v1/metadata", **described("metadata", "Policy, robots, limits", reference("Metadata"), refusals=(503,))
    )
    async def metadata() -> Response:
        try:
            return JSONResponse(service.metadata())
        except RequestError as error:
            return error_response(error)

    @router.get("/metrics", **described("metrics", "Counts and times, for Prometheus", TEXT))
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics_page(), media_type="text/plain; version=0.0.4")

    @router.post("/v1/act", **_ACT)
    async def act(request: Request) -> Response:
        try:
            return await _act(service, request)
        except RequestError as error:
            return error_response(error)

    return router


def error_response(error: RequestError) -> Response:
    """`{"error": text, "cause": label}` with the error's status."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse({"error": str(error), "cause": error.cause}, status_code=error.status, headers=headers)


async def _act(service: ActService, request: Request) -> Response:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (*_MSGPACK, "application/json"):
        service.metrics.count("rejected", "cause", "bad_request")
        raise RequestError(f"content-type: expected application/json or application/msgpack, got {kind[:60]!r}")
    with Holding(service.memory) as held:
        body = await read_body(service, request, held)
        gone = asyncio.Event()
        watcher = asyncio.create_task(_watch(request, gone))
        try:
            return Response(await service.handle(body, gone, json=kind == "application/json"), media_type=kind)
        finally:
            watcher.cancel()


async def read_body(service: ActService, request: Request, held: Holding | None = None) -> bytes:
    """The body of a request, within the server's size and time limits; for further routers as well.

    Args:
        held: Counts the body's bytes as long as the caller keeps it. None: they count only while the body arrives, which
            is enough for small bodies.

    Raises:
        RequestError: The body is too large (422), not complete in time (408), finds no memory (503), or nobody is there any
            more to send the rest (499).
    """
    if held is None:
        with Holding(service.memory) as meanwhile:
            return await read_body(service, request, meanwhile)
    limit, seconds = service.settings.limits.max_message_bytes, service.settings.read_timeout_s
    parts: list[bytes] = []
    size = 0
    refusal: RequestError | None = None
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size <= limit and refusal is None:
                    refusal = _counted(held, len(part))
                    parts.append(part)
                else:
                    parts.clear()  # the rest is read and dropped: a client that still sends would not read the answer
                    if size > 8 * limit:
                        break
    except ClientDisconnect:
        service.metrics.count("rejected", "cause", "disconnected")
        logger.info("a client left before it had sent its whole request (%d bytes of it)", size)
        raise RequestError("connection: closed before the whole body", status=499, cause="disconnected") from None
    except TimeoutError:
        service.metrics.count("rejected", "cause", "read_timeout")
        raise RequestError(
            f"message: expected the whole body within {seconds:g} s, got {size} bytes of it",
            status=408,
            cause="read_timeout",
        ) from None
    if size > limit:
        service.metrics.count("rejected", "cause", "oversized")
        more = "more than " if size > 8 * limit else ""
        raise RequestError(f"message: expected at most {limit} bytes, got {more}{size}", cause="oversized")
    if refusal is not None:
        service.metrics.count("rejected", "cause", refusal.cause)
        try:
            raise refusal
        finally:
            del refusal  # the error and this frame would hold each other, and the parts that have come
    return b"".join(parts)


def _counted(held: Holding, size: int) -> RequestError | None:
    try:
        held.add(size)
    except RequestError as refusal:
        return refusal
    return None


async def _watch(request: Request, gone: asyncio.Event) -> None:
    """Sets `gone` when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
