"""One connection to a projection process: requests go out as they come, answers are matched by id."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from typing import Self

import msgspec
from msgspec import Raw

from penstock.projections import protocol
from penstock.projections.protocol import Call, Hello, Request, Response

_CONNECT_S = 2.0


class Connection:
    """Open with :meth:`open`, end with :meth:`close`. After ``closed`` it is of no more use."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Raw]] = {}
        self._reading = asyncio.create_task(self._read(), name="projection-connection")
        self.closed = False

    @classmethod
    async def open(cls, address: str, hello: Hello) -> Self:
        """Connect to ``host:port`` and greet.

        Raises:
            ConnectionError: it does not answer in time, or serves another log.
        """
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                try:
                    writer.write(protocol.frame(hello))
                    data = await protocol.read_frame(reader)
                    answer = None if data is None else protocol.decode_response(data)
                    if answer is None or answer.problem is not None:
                        raise ConnectionError(f"{address} refused the greeting: {answer}")
                except BaseException:
                    writer.close()
                    raise
        except (OSError, TimeoutError, ValueError) as error:
            raise ConnectionError(f"no projection answers at {address}: {error}") from error
        return cls(reader, writer)

    async def call(self, call: Call, timeout_s: float) -> Raw:
        """The answer's JSON.

        Raises:
            PenstockError: what the projection raised.
            ConnectionError: it is gone, or did not answer within ``timeout_s``.
        """
        if self.closed:
            raise ConnectionError("the connection is closed")
        request = Request(next(self._ids), call)
        future: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(protocol.frame(request))
                await self._writer.drain()
                return await future
        except TimeoutError as error:
            raise ConnectionError(f"no answer within {timeout_s:.1f} s") from error
        finally:
            del self._waiting[request.id]

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        broken: Exception = ConnectionError("the projection closed the connection")
        try:
            while (data := await protocol.read_frame(self._reader)) is not None:
                self._settle(protocol.decode_response(data))
        except (OSError, msgspec.MsgspecError) as error:
            broken = ConnectionError(f"the connection broke: {error}")
        finally:
            self.closed = True
            self._writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(broken)

    def _settle(self, response: Response) -> None:
        future = self._waiting.get(response.id)
        if future is None or future.done():
            return
        if response.problem is None:
            future.set_result(response.answer)
        else:
            future.set_exception(protocol.error_of(response.problem))
