"""HTTP between simulated processes: a client's requests to the API's application, over a network that may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx

from tests.sim.loop import ProcessLoop
from tests.sim.simlog import Senses
from tests.sim.world import World


class Exchange:
    """A place where something is served: what runs there, in which loop, while it is up."""

    def __init__(self) -> None:
        self.loop: ProcessLoop | None = None
        self.service: Any = None

    def serve(self, loop: ProcessLoop, service: Any) -> None:
        self.loop, self.service = loop, service

    def close(self) -> None:
        self.loop = self.service = None

    @property
    def up(self) -> bool:
        return self.loop is not None and not self.loop.dead


class Dead(Exception):
    """The other side is not there, or no longer."""


class Hangup:
    """Tells a server that its client has left."""

    def __init__(self) -> None:
        self._left = False
        self._tell: Callable[[], None] | None = None

    def hang_up(self) -> None:
        self._left = True
        if self._tell is not None:
            self._tell()

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProcessLoop)
        if not self._left:
            left = loop.create_future()
            self._tell = partial(loop.complete, left, None)
            await left


async def call(
    world: World, here: ProcessLoop, there: Exchange, work: Callable[[Any], Awaitable[Any]]
) -> Any:
    """Run ``work`` in another process and bring back what it returns or raises.

    Raises:
        Dead: nobody is there, or it died meanwhile.
    """
    future: asyncio.Future[Any] = here.create_future()
    target = there.loop
    if target is None or target.dead:
        world.after(world.between(0, 3), partial(here.complete, future, Dead()))
        return await future
    service = there.service

    def back(outcome: Any) -> None:
        world.after(world.between(0, 3), partial(here.complete, future, outcome))

    async def serve() -> None:
        try:
            outcome = await work(service)
        except asyncio.CancelledError:
            outcome = Dead()
        except Exception as error:  # noqa: BLE001 # whatever it is, it is the caller's
            outcome = error
        back(outcome)

    def arrive() -> None:
        if not target.dead:
            target.call_soon(lambda: target.create_task(serve(), name="call"))

    target.on_death.append(lambda: back(Dead()))
    world.after(world.between(0, 3), arrive)
    return await future


class SimHttp(httpx.AsyncBaseTransport):
    """Sends a client's requests to an ASGI application in another process."""

    def __init__(self, world: World, here: ProcessLoop, servers: list[Exchange], senses: Senses) -> None:
        self._world, self._here, self._servers, self._senses = world, here, servers, senses
        self._balanced = world.random.choice((0.0, 0.1, 1.0))
        """How often a balancer sends a request to another server than the one before."""
        self._server: Exchange | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        world = self._world
        body = await request.aread()
        up = [exchange for exchange in self._servers if exchange.up]
        gone = Hangup()
        timeout_s = request.extensions.get("timeout", {}).get("read") or 60.0
        lost = world.mono_ms < self._senses.cut_until_ms or world.chance(world.weather.hint_lost / 4)
        if not up:
            await asyncio.sleep(world.between(0, 3) / 1_000)
            raise httpx.ConnectError("connection refused")
        server = self._server
        if server not in up or world.random.random() < self._balanced:
            server = self._server = world.random.choice(up)
        try:
            async with asyncio.timeout(timeout_s):
                if lost and world.random.random() < 0.5:
                    await self._never()
                answer = await call(world, self._here, server, partial(_asgi, request, body, gone))
                if lost:
                    await self._never()
                status, headers, content = answer
                return httpx.Response(status, headers=headers, content=content)
        except TimeoutError:
            raise httpx.ReadTimeout("no answer in time") from None
        except Dead:
            raise httpx.ReadError("connection reset") from None
        finally:
            gone.hang_up()

    async def _never(self) -> None:
        self._world.stats["requests or answers lost"] += 1
        if self._world.random.random() < 0.5:
            raise httpx.ReadError("connection reset")
        await asyncio.Event().wait()


async def _asgi(request: httpx.Request, body: bytes, gone: Hangup, app: Any) -> tuple[int, Any, bytes]:
    """One request to the application."""
    url = request.url
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "path": url.path, "raw_path": url.raw_path, "query_string": url.query, "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw], "client": ("10.0.0.1", 1),
        "server": ("api", 80), "state": {},
    }  # fmt: skip
    sent = False
    status, headers, content = 500, [], b""

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, headers, content
        if message["type"] == "http.response.start":
            status, headers = message["status"], message.get("headers", [])
        else:
            content += message.get("body", b"")

    await app(scope, receive, send)
    return status, headers, content
