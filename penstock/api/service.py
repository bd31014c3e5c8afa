"""The API as a service of a process: uvicorn on the process's own event loop, started and stopped like other parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from penstock.api.stream import cut
from penstock.api.web_sockets import WebSocketProtocol
from penstock.log.supervision import tell, why_ended
from penstock.schemas.errors import SettingsInvalid

log = logging.getLogger("penstock.api")

STARTUP_S = 10.0
GRACE_S = 5
"""How long open requests may take to end."""
MAX_MESSAGE_BYTES = 64 << 10
"""What a listener may say over a WebSocket, where nothing is to be said."""


def _tells(record: logging.LogRecord) -> bool:
    """uvicorn calls two things errors that are meant: a WebSocket refused by an answer with a problem, and a stream cut
    in its middle, which its reader is to notice.
    """
    if record.msg == "ASGI callable returned without completing response.":
        return not cut.get()
    return record.msg != "ASGI callable returned without completing handshake."


logging.getLogger("uvicorn.error").addFilter(_tells)


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: those belong to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class ApiService:
    """Serves an application until it is left. ``failure`` gets the error that ended it, if one does.

    Args:
        host, port: where to listen; port 0 takes a free one, which :attr:`address` then tells.
    """

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 8700) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] | None = None
        self.address = ""

    @property
    def failure(self) -> asyncio.Future[None]:
        if self._failure is None:
            self._failure = asyncio.get_running_loop().create_future()
        return self._failure

    async def __aenter__(self) -> Self:
        self._listener = self._listen()
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ws=WebSocketProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=GRACE_S,
            backlog=1024,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="penstock-api")
        self._task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(STARTUP_S):
                while not self._server.started:
                    if self._task.done():
                        await self._task
                        raise RuntimeError("the HTTP server ended while it started")
                    await asyncio.sleep(0.005)
        except BaseException:
            await self._stop()
            raise
        log.info("listening on %s", self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise SettingsInvalid(f"cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        listener.setblocking(False)
        host = f"[{self._host}]" if family == socket.AF_INET6 else self._host
        self.address = f"http://{host}:{listener.getsockname()[1]}"
        return listener

    def _ended(self, task: asyncio.Task[None]) -> None:
        stopping = self._server is not None and self._server.should_exit
        error = why_ended(task)
        if error is not None and not stopping:
            tell(self.failure, error)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if self._server is not None and self._listener is not None:
            # A server that broke has not closed what it listened on.
            for server in getattr(self._server, "servers", ()):
                server.close()
            self._listener.close()
        if self._failure is not None:
            if self._failure.done() and not self._failure.cancelled():
                self._failure.exception()
            self._failure.cancel()
