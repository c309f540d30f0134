"""The policy server: openpi's websocket protocol and HTTP on one port (`syvla-serve`).

While the policy loads and warms up, no request is answered: `/readyz` says 503, and a websocket gets its first frame once
the policy is ready. Inference runs in a worker thread (`batching`), so that pings are answered during the longest call.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from syvla import __version__

from .contract.requests import PolicyBackend, PolicyHolder, RequestError
from .recording.by_session import ServedRecording
from .rl.routes import rl_router
from .rl.scheduler import RLScheduler
from .server.access_control import AccessControl
from .server.act_service import ActService
from .server.connection_guards import Guards, guarded_protocols
from .server.http_routes import error_response, http_router
from .server.live_routes import live_router
from .server.route_schemas import complete
from .server.settings import ServerSettings
from .server.websocket_routes import websocket_router

logger = logging.getLogger(__name__)


def build_app(service: ActService, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The ASGI application of a service.

    Args:
        service: Holds settings and policy; `service.holder.swap(policy)` replaces the policy between two batches.
        routers: Further routes, behind the same access control. Their handlers may raise `RequestError`, and read bodies
            with `http_routes.read_body`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        watcher = asyncio.create_task(service.watch_sessions())
        yield
        watcher.cancel()
        await asyncio.to_thread(service.close)

    app = _DescribedApp(
        title="SyVLA policy server",
        description="Its HTTP side. docs/protocol.md describes the websocket, and what each key means.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(http_router(service))
    app.include_router(live_router(service))
    for router in routers:
        app.include_router(router)
    app.include_router(websocket_router(service))
    app.add_middleware(AccessControl, service=service)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        text = f"{first['loc'][-1]}: {first['msg']}, got {first['input']!r:.60}"
        return error_response(RequestError(text))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        text = (
            f"route: no {request.method} {request.url.path[:100]} here ({error.detail}); /openapi.json lists the routes"
        )
        return JSONResponse({"error": text}, status_code=error.status_code, headers=error.headers)

    return app


class _DescribedApp(FastAPI):
    """Adds to FastAPI's description of the routes what they share."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema


class PolicyServer:
    """A server for one policy, in a thread of this process (`start`, `stop`) or as the process itself (`run`).

    Args:
        policy: The policy, or a function that loads it. The function is called in a thread once the server listens.
        settings: See `ServerSettings`.
        routers: See `build_app`.
        record: Folder in which served episodes are recorded, see `RolloutRecorder`.
        rl: Run of reinforcement learning. The run then gives the policy, records episodes, and adds routes.

    Attributes:
        service: Answers requests.
        holder: Holds the policy in use.
    """

    def __init__(
        self,
        policy: PolicyBackend | Callable[[], PolicyBackend] | None,
        settings: ServerSettings | None = None,
        *,
        routers: Sequence[APIRouter] = (),
        record: str | Path | None = None,
        rl: RLScheduler | None = None,
    ) -> None:
        if (policy is None) != (rl is not None) or (rl is not None and record is not None):
            raise ValueError("rl: a run gives the policy and records by itself; pass either a policy or a run")
        self.settings = settings or ServerSettings()
        self.holder = PolicyHolder()
        self.service = ActService(self.settings, self.holder)
        self._load: Callable[[], PolicyBackend] = policy if callable(policy) else lambda: policy  # type: ignore[assignment,return-value]
        self._record = Path(record) if record is not None else None
        self._rl = rl
        if rl is not None:
            rl.service, self._load = self.service, rl.first_policy
            self.service.live.editable = False
            routers = (*routers, rl_router(rl))
        self._server = _DrainingServer(self._config(build_app(self.service, routers)), self.service)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        settings: ServerSettings | None = None,
        *,
        routers: Sequence[APIRouter] = (),
        record: str | Path | None = None,
        **options: Any,
    ) -> PolicyServer:
        """A server for a checkpoint; options as for `SyVLABackend.from_pretrained`."""

        def load() -> PolicyBackend:
            from .policies.backend import SyVLABackend

            return SyVLABackend.from_pretrained(path, **options)

        return cls(load, settings, routers=routers, record=record)

    def _config(self, app: FastAPI) -> uvicorn.Config:
        settings = self.settings
        guards = Guards(
            settings.limits.max_message_bytes,
            settings.read_timeout_s,
            self.service.memory,
            lambda cause: self.service.metrics.count("rejected", "cause", cause),
            settings.max_connections,
        )
        http, websocket = guarded_protocols(guards)
        return uvicorn.Config(
            app,
            http=http,
            ws=websocket,
            ws_max_size=settings.limits.max_message_bytes,
            ws_ping_interval=settings.ping_interval_s,
            ws_ping_timeout=settings.ping_interval_s,
            ws_per_message_deflate=False,
            limit_concurrency=2 * settings.max_connections,
            timeout_keep_alive=int(max(1, settings.read_timeout_s)),
            timeout_graceful_shutdown=5,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )

    # ------------------------------------------------------------------ in a thread

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        if self._socket is None:
            raise RuntimeError("the server does not listen yet; call start")
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """`host:port`, without a scheme."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{host}:{self.port}"

    def start(self, timeout: float | None = None, *, wait: bool = True) -> PolicyServer:
        """Listens in a thread.

        Args:
            timeout: Seconds to wait for the policy.
            wait: Whether to return only when the policy is loaded and warm.

        Raises:
            OSError: The port is taken.
            Exception: Whatever loading the policy raised.
        """
        self._socket = self._bind()
        self._thread = threading.Thread(target=self._serve, name="policy-server", daemon=True)
        self._thread.start()
        if wait and not self._ready.wait(timeout):
            self.stop()
            raise TimeoutError(f"the policy was not ready within {timeout} s")
        if wait and self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def stop(self) -> None:
        """Answers the requests that were accepted, then stops. May be called twice."""
        if self._thread is not None and self._thread.is_alive():
            self._server.begin_drain()
            self._thread.join()

    def __enter__(self) -> PolicyServer:
        return self if self._thread is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM.

        Raises:
            OSError: The port is taken.
            RecordingError: It stopped as it should, but episodes could not be recorded.
            Exception: Whatever loading the policy raised.
        """
        self._socket = self._bind()
        self._serve()
        if self._error is not None:
            raise self._error
        lost = {} if self.service.recording is None else dict(self.service.recording.lost)
        if lost:
            from .recording.recorder import RecordingError

            raise RecordingError(f"{len(lost)} episode(s) could not be recorded; the first: {next(iter(lost.items()))}")

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.settings.host, self.settings.port))
            listening.listen(1024)  # clients may connect from now on, though the event loop may still be starting
        except OSError as error:
            listening.close()
            raise OSError(f"{self.settings.host}:{self.settings.port}: cannot listen there ({error})") from error
        return listening

    def _serve(self) -> None:
        loader = threading.Thread(target=self._load_policy, name="policy-loader", daemon=True)
        loader.start()
        try:
            self._server.run(sockets=[self._socket] if self._socket else None)
        except BaseException as error:
            self._error = self._error or error
        finally:
            if self._rl is not None:
                self._rl.stop()
            self._ready.set()

    def _load_policy(self) -> None:
        """Loads and warms up the policy, then begins to answer requests."""
        try:
            policy = self._load()
            robots = self.service.robots(policy)  # settings and policy must belong together
            policy.warm_up(bool(self.settings.think))
            described = {name: policy.metadata()["embodiments"][name] for name in robots}
            if self._record is not None:
                self.service.recording = ServedRecording(self._record, described)
            elif self._rl is not None:
                self.service.recording = self._rl.recording(described)
            self.holder.swap(policy)
            logger.info("ready: %s at %s", policy.version, self.url)
        except BaseException as error:
            self._error = error
            self._server.begin_drain()
        self._ready.set()


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that lets the service finish before it stops; uvicorn itself cuts websockets off."""

    def __init__(self, config: uvicorn.Config, service: ActService) -> None:
        super().__init__(config)
        self.service = service
        self._stopping = threading.Event()

    def begin_drain(self) -> None:
        """Makes the server stop once every accepted request is answered. May be called from any thread."""
        self._stopping.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stopping.is_set() and sig == signal.SIGINT:  # a second Ctrl+C: at once
            self.force_exit = self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        watcher = asyncio.create_task(self._drain())
        await super().main_loop()
        watcher.cancel()

    async def _drain(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(0.02)
        await self.service.drain()
        await asyncio.sleep(0.05)  # the last replies are on their way
        self.should_exit = True
