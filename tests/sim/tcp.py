"""TCP between simulated processes: bytes in order, in pieces of any size, a little later, until one side is gone.

What is sent to or from a host that is cut off comes when it no longer is. A process that dies takes its connections
with it, as its operating system would; one that is only stopped keeps them, and does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.loop import ProcessLoop
    from tests.sim.world import World

FIRST_PORT = 40_000


class Network:
    """Who listens where. Hosts have the names of their loops, up to the dot."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._listening: dict[int, Listener] = {}
        self._next_port = FIRST_PORT

    def listen(self, loop: ProcessLoop, factory: Callable[[], Any], port: int) -> Listener:
        if not port:
            self._next_port += 1
            port = self._next_port
        if port in self._listening:
            raise OSError(f"port {port} is taken")
        listener = self._listening[port] = Listener(self, loop, factory, port)
        loop.on_death.append(listener.close)
        return listener

    def closed(self, port: int) -> None:
        self._listening.pop(port, None)

    async def connect(self, loop: ProcessLoop, factory: Callable[[], Any], port: int) -> tuple[Any, Any]:
        world = self.world
        knocked: asyncio.Future[None] = loop.create_future()
        world.after(world.between(0, 3), lambda: loop.complete(knocked, None))
        await knocked
        listener = self._listening.get(port)
        if listener is None or listener.loop.dead:
            raise ConnectionRefusedError(f"nobody listens at {port}")
        here, there = Socket(world, loop), Socket(world, listener.loop)
        here.peer, there.peer = there, here
        here.begin(factory())
        listener.loop.call_soon(lambda: there.begin(listener.factory()))
        return here, here.protocol


class Listener:
    """What ``create_server`` gives."""

    def __init__(self, network: Network, loop: ProcessLoop, factory: Callable[[], Any], port: int) -> None:
        self._network, self.loop, self.factory, self.port = network, loop, factory, port
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def close(self) -> None:
        self._network.closed(self.port)

    async def wait_closed(self) -> None:
        """Nothing is left to close."""


class Socket(asyncio.Transport):
    """One side of a connection."""

    peer: Socket

    def __init__(self, world: World, loop: ProcessLoop) -> None:
        super().__init__()
        self._world, self._loop = world, loop
        self.protocol: Any = None
        self._closing = self._lost = False
        self._arrived_ms = 0
        """When what was sent last arrives: nothing overtakes it."""
        self._early: list[bytes | None] = []

    def begin(self, protocol: Any) -> None:
        self.protocol = protocol
        self._loop.on_death.append(self._died)
        protocol.connection_made(self)
        early, self._early = self._early, []
        for data in early:
            self._take(data)

    def _died(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(self.peer._reset)

    def _send(self, what: Callable[..., None], *args: Any) -> None:
        world, peer = self._world, self.peer
        cut_ms = max(self._loop.cut_until_ms(), peer._loop.cut_until_ms())
        at_ms = max(self._arrived_ms, world.mono_ms + world.random.choice((0, 0, 1, 3)), cut_ms)
        self._arrived_ms = at_ms
        world.after(at_ms - world.mono_ms, lambda: peer._loop.call_soon(what, *args))

    def _take(self, data: bytes | None) -> None:
        if self._lost:
            return
        if self.protocol is None:
            self._early.append(data)
        elif data is not None:
            self.protocol.data_received(data)
        elif not self.protocol.eof_received():
            self.close()

    def _reset(self) -> None:
        self._closing = True
        self._lose(ConnectionResetError("the other side is gone"))

    def _lose(self, error: Exception | None) -> None:
        if not self._lost and self.protocol is not None:
            self._lost = True
            self.protocol.connection_lost(error)

    # What asyncio asks of a transport

    def write(self, data: Any) -> None:
        if self._closing:
            return
        data = bytes(data)
        cut = self._world.random.randint(1, len(data)) if data else 0
        for piece in (data[:cut], data[cut:]):
            if piece:
                self._send(self.peer._take, piece)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(self.peer._take, None)
            self._loop.call_soon(self._lose, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nobody sends so much here."""

    def resume_reading(self) -> None:
        """Nothing was paused."""

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol
