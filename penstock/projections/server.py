"""Answers the read model's protocol for one projection process, and tells on the signals topic that it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Raw

from penstock.core.rules import RULES, RulesTable, newest
from penstock.log.port import Log
from penstock.log.supervision import supervise, tell
from penstock.projections import protocol
from penstock.projections.protocol import Response
from penstock.projections.read_model import ReadModelService
from penstock.schemas.errors import BadRequest, InvalidField, LogError, PenstockError, ReadModelUnavailable
from penstock.schemas.messages import Serving, encode_messages
from penstock.schemas.topics import BROADCAST

_log = logging.getLogger(__name__)

ANNOUNCE_EVERY_S = 0.5
MOST_ANSWER_BYTES = protocol.MAX_FRAME_BYTES - 1_024

MAX_UNDER_WAY = 1_000
"""Requests of one connection answered at once; beyond, it is not read on."""


class ReadServer:
    """Serves a :class:`ReadModelService` on ``host:port``.

    Args:
        name: of this process, in its announcements. ``incarnation`` tells its lives apart.
        advertise: the ``host:port`` that others reach it at; where empty, ``host`` and the port it got.
    """

    failure: asyncio.Future[None]
    """Gets the exception that ended the server."""

    def __init__(
        self,
        service: ReadModelService,
        log: Log,
        *,
        name: str,
        incarnation: str,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str = "",
        rules: RulesTable = RULES,
    ) -> None:
        self._service = service
        self._rules = newest(rules)
        self._log = log
        self._name = name
        self._incarnation = incarnation
        self._host = host
        self._port = port
        self.address = advertise
        """Where it is reached, once it serves."""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._announcer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.failure = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(self._connected, self._host, self._port)
        if not self.address:
            self.address = f"{self._host}:{self._server.sockets[0].getsockname()[1]}"
        self._announcer = supervise(
            self._announce(), "projection-announcer", lambda error: tell(self.failure, error)
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._announcer is not None
        self._server.close()
        self._announcer.cancel()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(self._announcer, *self._connections, return_exceptions=True)
        await self._server.wait_closed()
        if self.failure.done():
            self.failure.exception()
        else:
            self.failure.cancel()
        with contextlib.suppress(LogError, TimeoutError):
            async with asyncio.timeout(1):
                await self._say(leaving=True)

    # Announcing

    async def _announce(self) -> None:
        while True:
            try:
                await self._say(leaving=False)
            except LogError as error:
                _log.warning("the projection could not announce itself: %s", error)
            await asyncio.sleep(ANNOUNCE_EVERY_S)

    async def _say(self, *, leaving: bool) -> None:
        serving = Serving(
            projection=self._name,
            incarnation=self._incarnation,
            address=self.address,
            partitions=self._service.served,
            leaving=leaving,
            at=time.time_ns() // 1_000_000,
            rules=self._rules,
        )
        await self._log.append(self._service.topics.signals, BROADCAST, encode_messages([serving]))

    # Answering

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        # A cancelled connection is an ended one: asyncio's streams would report it as an error otherwise.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await self._converse(reader, writer)
            except ConnectionError as error:
                _log.debug("a reader's connection broke: %s", error)
            finally:
                self._connections.discard(task)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await protocol.read_frame(reader)
        if hello is None:
            return
        problem = self._check_hello(hello)
        writer.write(
            protocol.frame(Response(0, problem=None if problem is None else protocol.problem_of(problem)))
        )
        if problem is not None:
            await writer.drain()
            return
        room = asyncio.Semaphore(MAX_UNDER_WAY)
        under_way: set[asyncio.Task[None]] = set()
        try:
            while (data := await protocol.read_frame(reader)) is not None:
                await room.acquire()
                task = asyncio.create_task(self._respond(data, writer, room))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
        finally:
            for task in list(under_way):
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _check_hello(self, data: bytes) -> PenstockError | None:
        try:
            hello = protocol.decode_hello(data)
        except msgspec.MsgspecError as error:
            return BadRequest(f"not a greeting: {error}")
        mine = protocol.Hello(protocol.VERSION, self._log.cluster_id, self._service.topics.jobs)
        return None if hello == mine else BadRequest(f"this projection serves {mine}, not {hello}")

    async def _respond(self, data: bytes, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
        try:
            response = await self._response(data)
            if not writer.is_closing():
                writer.write(protocol.frame(response))
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        finally:
            room.release()

    async def _response(self, data: bytes) -> Response:
        number = 0
        try:
            request = protocol.decode_request(data)
            number = request.id
            answer = protocol.encode(await self._answer(request.call))
            if len(answer) <= MOST_ANSWER_BYTES:
                return Response(number, answer=Raw(answer))
            # As a frame it would end the connection, and with it every other call.
            problem: PenstockError = InvalidField(
                f"the answer has {len(answer)} bytes: ask for fewer items", field="limit"
            )
        except msgspec.MsgspecError as error:
            problem = BadRequest(f"not a request: {error}")
            with contextlib.suppress(msgspec.MsgspecError):
                number = protocol.decode_numbered(data).id
        except PenstockError as error:
            problem = error
        except Exception:  # noqa: BLE001 - whoever asked would wait for an answer that never comes
            _log.exception("a read failed")
            problem = ReadModelUnavailable("The projection failed to answer.")
        return Response(number, problem=protocol.problem_of(problem))

    async def _answer(self, call: protocol.Call) -> Any:
        service = self._service
        match call:
            case protocol.Wait():
                return await service.wait(call.positions, call.timeout_ms)
            case protocol.GetJob():
                return await service.job(call.tenant, call.job)
            case protocol.GetJobAsOf():
                return await service.job_as_of(call.tenant, call.job, call.moment, call.packed)
            case protocol.GetHistory():
                return await service.history(call.tenant, call.job, call.limit, call.cursor)
            case protocol.GetVerdicts():
                return await service.verdicts(call.wanted, call.timeout_ms, call.unique_keys)
            case protocol.GetOutcomes() | protocol.GetOutcomesNewer():
                return await service.outcomes(call.lines, call.wanted)
            case protocol.ListJobs():
                return await service.list_jobs(call.query, call.partitions)
            case protocol.SearchJobs() | protocol.SearchJobsAt() | protocol.SearchNewer():
                return await service.search(call.query, call.partitions)
            case protocol.ListOperated():
                return await service.operated(call.operation, call.limit, call.cursor, call.partitions)
            case protocol.GetCounts():
                return await service.counts(call.tenant, partitions=call.partitions)
            case protocol.GetCountsAt():
                return await service.counts(call.tenant, call.at, call.partitions)
            case protocol.GetCountsAmong():
                return await service.counts(call.tenant, call.at, call.partitions, among=call.among)
            case protocol.ListQuarantined():
                return await service.quarantined(call.limit, call.cursor, call.partitions)
            case protocol.GetStatus():
                return await service.status(call.partitions)
