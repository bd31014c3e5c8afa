"""What happens, as it happens: lines of the jobs log with what became of them, to whoever listens.

The log is followed, and each portion is shown once the read model has folded it, for only then is known what was
accepted. So a listener that resumes behind the last thing it was told misses nothing and hears nothing twice, whichever
process it asks: the token of each event names a place on every partition, or none where there was nothing yet.

Nothing is kept for a listener. One that does not read is not waited for for ever: what it leaves unread stays on the
log, and after :data:`SLOW_S` it is cut off, to come back for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec
from msgspec import Struct

from penstock.api.deps import ApiDeps
from penstock.log.port import Record, Tail, TopicPartition
from penstock.projections.port import JobFilter
from penstock.schemas.codec import decode_line, split
from penstock.schemas.errors import OffsetBeyondEnd, OffsetTrimmed, PositionGone, ReadBehind, Undecodable
from penstock.schemas.events import JobEvent
from penstock.schemas.position import LINE_MASK, Position, parse_token, token
from penstock.schemas.times import time_text

POLL_MS = 1_000
POLL_RECORDS = 200
QUIET_S = 10.0
"""So often at least something is told, so that whoever is between does not take the connection for dead."""
SLOW_S = 30.0

cut: ContextVar[bool] = ContextVar("cut", default=False)
"""Whether the answer that is given here was ended in its middle because its listener did not read."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Listening(Struct, frozen=True, kw_only=True):
    """What a listener wants to hear. ``types`` of events, empty for all; ``job`` one job's, empty for any."""

    tenant: str
    wanted: JobFilter = JobFilter()
    types: frozenset[str] = frozenset()
    job: str = ""
    refused: bool = False
    """Whether lines that were refused are told too."""


class Heard(Struct, frozen=True):
    """Something to tell: an event, or, where ``data`` is empty, only how far it is. ``token`` resumes behind it."""

    token: str
    type: str = ""
    data: bytes = b""


class _Line(Struct, frozen=True):
    position: Position
    time_ms: int
    data: bytes
    type: str
    job: str


_MARK = "~"
"""What a listener's token begins with: it is about every partition, and not only about those that were written to."""


class Listener:
    """Follows the log for one listener.

    Args:
        after: token of a listener, or position token of a write: then other partitions are followed from now on. Empty:
            all are.

    Raises:
        InvalidCursor: it is neither.
    """

    def __init__(self, deps: ApiDeps, listening: Listening, after: str) -> None:
        self._deps = deps
        self._listening = listening
        self._from_now = not after.startswith(_MARK)
        places = after.removeprefix(_MARK)
        self._after = dict(parse_token(places)) if places else {}
        self._topic = deps.topics.jobs

    async def starts(self) -> dict[TopicPartition, int]:
        """Where to begin on each partition. Raises PositionGone, LogUnavailable."""
        found: dict[TopicPartition, int] = {}
        for partition in range(self._deps.topics.partitions):
            bounds = await self._deps.log.bounds(self._topic, partition)
            known = self._after.get(partition)
            if known is None and self._from_now and bounds.end:
                known = self._after[partition] = Position(partition, bounds.end - 1, LINE_MASK)
            if known is None:
                if bounds.start:
                    raise PositionGone(f"the log no longer has what partition {partition} began with")
                found[self._topic, partition] = 0
            elif known.offset + 1 < bounds.start:
                raise PositionGone(f"the log no longer has what follows {known}", position=str(known))
            elif known.offset > bounds.end:
                raise PositionGone(f"the log ends before {known}: is it of another log?", position=str(known))
            else:
                # The rest of that record may not have been told yet.
                found[self._topic, partition] = max(known.offset, bounds.start)
        return found

    async def listen(self, starts: Mapping[TopicPartition, int]) -> AsyncGenerator[Heard]:
        """What is heard, for ever.

        Raises:
            PositionGone: the log was trimmed beyond where this listener is, or ends before it.
            ReadModelUnavailable, LogUnavailable: they went away.
        """
        told_s = time.monotonic()
        async with self._deps.log.tail(starts) as tail:
            while True:
                lines = await self._lines(tail)
                count = 0
                async for heard in self._told(lines):
                    yield heard
                    count += 1
                now_s = time.monotonic()
                if count:
                    told_s = now_s
                elif now_s - told_s >= QUIET_S:
                    told_s = now_s
                    yield Heard(self._token())

    async def _lines(self, tail: Tail) -> list[_Line]:
        try:
            records = await tail.poll(POLL_MS, POLL_RECORDS)
        except OffsetTrimmed as error:
            raise PositionGone("the log no longer has what follows") from error
        except OffsetBeyondEnd as error:
            raise PositionGone("the log ends before what follows: it was cut, or made anew") from error
        if not records:
            return []
        await self._folded(records)
        return [line for record in records for line in self._lines_of(record)]

    async def _folded(self, records: Sequence[Record]) -> None:
        last = {record.partition: Position(record.partition, record.offset, 0) for record in records}
        while True:
            try:
                await self._deps.read_model.wait(last, self._deps.options.read_wait_ms)
            except ReadBehind:
                # It is slow today; nothing is lost by waiting on.
                continue
            return

    def _lines_of(self, record: Record) -> list[_Line]:
        found: list[_Line] = []
        known = self._after.get(record.partition)
        for number, data in enumerate(split(record.value)):
            position = Position(record.partition, record.offset, number)
            if known is not None and position <= known:
                continue
            kind, job = self._about(data)
            found.append(_Line(position, record.time_ms, data, kind, job))
        return found

    def _about(self, data: bytes) -> tuple[str, str]:
        """Type and job of a line that may be told; empty for others."""
        listening = self._listening
        try:
            event = decode_line(data)
        except Undecodable:
            return "", ""
        if not isinstance(event, JobEvent) or event.tenant != listening.tenant:
            return "", ""
        kind = type(event).__name__
        if (listening.job and event.job != listening.job) or (
            listening.types and kind not in listening.types
        ):
            return "", ""
        return kind, event.job

    async def _told(self, lines: Sequence[_Line]) -> AsyncGenerator[Heard]:
        asked = [line for line in lines if line.job]
        tenant = self._listening.tenant
        outcomes = await self._deps.read_model.outcomes(
            [(line.position, tenant, line.job) for line in asked], self._listening.wanted
        )
        by_position = {line.position: outcome for line, outcome in zip(asked, outcomes, strict=True)}
        for line in lines:
            self._after[line.position.partition] = line.position
            outcome = by_position.get(line.position, "")
            if outcome and (outcome == "applied" or self._listening.refused):
                yield Heard(self._token(), line.type, _shown(line, outcome))

    def _token(self) -> str:
        return _MARK + token(self._after.values())


async def serve_until_gone(
    sending: Coroutine[Any, Any, None], leaving: Coroutine[Any, Any, None], heard: AsyncGenerator[Heard]
) -> None:
    """Send what is heard until either side leaves; then nothing of it goes on. Raises what sending raised."""
    tasks = [
        asyncio.create_task(sending, name="event-stream"),
        asyncio.create_task(leaving, name="event-stream-leaving"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await heard.aclose()
    sent = tasks[0]
    if not sent.cancelled() and (error := sent.exception()) is not None:
        raise error


def _shown(line: _Line, outcome: str) -> bytes:
    shown: dict[str, Any] = {
        "type": line.type,
        "job": line.job,
        "position": str(line.position),
        "at": time_text(line.time_ms),
        "outcome": outcome,
    }
    shown.update((name, value) for name, value in _fields(line.data).items() if name not in shown)
    return _encode(shown)
