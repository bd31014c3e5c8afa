"""The API in the place of a server: requests of clients are answered by the application itself, in the same process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import httpx

from penstock.api.app import create_app
from penstock.api.deps import ApiDeps
from penstock.api.metrics import ApiMetrics
from penstock.schemas.topics import Topics
from penstock.testing.instant import InstantLog, InstantReadModel, InstantTopics, InstantWriter

ADDRESS = "http://sandbox"
_T = TypeVar("_T")


def deps_over(log: InstantLog) -> ApiDeps:
    """What the API stands on in a sandbox. There are no workers to be heard."""
    nobody: Any = SimpleNamespace(live=list, handled=set, failure=None)
    gateway: Any = SimpleNamespace(sessions=0, parked=0, stop=lambda: None)
    return ApiDeps(
        log=cast("Any", InstantTopics(log)),
        topics=Topics(namespace="sandbox", partitions=1, work_partitions=2),
        writer=InstantWriter(log),
        read_model=InstantReadModel(log),
        registry=nobody,
        gateway=gateway,
        metrics=ApiMetrics(),
        now_ms=lambda: log.now_ms,
    )


class InstantServer:
    """What clients speak to. See :class:`penstock.client.sending.StandIn`."""

    def __init__(self, log: InstantLog, then: Callable[[], Awaitable[object]]) -> None:
        """``then`` is awaited after each request that may have put a job in, before it is answered."""
        app: Any = create_app(deps_over(log))
        self.asynchronous: httpx.AsyncBaseTransport = _Then(httpx.ASGITransport(app), then)
        self.blocking: httpx.BaseTransport = _Blocking(self.asynchronous)


class _Then(httpx.AsyncBaseTransport):
    """Does something after each write."""

    def __init__(self, inner: httpx.AsyncBaseTransport, then: Callable[[], Awaitable[object]]) -> None:
        self._inner = inner
        self._then = then

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.method == "POST":
            await self._then()
        return response


class _Blocking(httpx.BaseTransport):
    """Answers whoever cannot await, in whatever thread, also one whose event loop is running."""

    def __init__(self, asynchronous: httpx.AsyncBaseTransport) -> None:
        self._asynchronous = asynchronous

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return run_to_its_end(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        response = await self._asynchronous.handle_async_request(request)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=content)


def run_to_its_end(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine: in an event loop of its own, and in another thread where this one has one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    ended: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            ended.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="sandbox")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]
