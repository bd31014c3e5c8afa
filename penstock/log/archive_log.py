"""A log that goes on into its archive: what was trimmed from the jobs topic is read from there, and nobody notices.

::

    offsets   0 ───────────────────────────── start ───────────────────────── end
              │  trimmed: read from the archive │  on the log: read from there  │

Only reading differs. Where the log still begins with its first record the archive is never asked. Where the archive
does not reach up to the log's start, what is missing stays missing: :class:`~penstock.schemas.errors.OffsetTrimmed`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self

from penstock.log.archive import Archive, ArchiveCursor
from penstock.log.memory_topics import check_offset
from penstock.log.port import Appended, Bounds, Headers, Log, Record, Tail, TopicPartition, TopicSpec
from penstock.schemas.errors import BlobsUnavailable, LogUnavailable, OffsetTrimmed


class ArchivedLog:
    """See the module. Use as an async context manager in place of the log itself.

    Args:
        log: the log, not yet entered.
        archive: of its jobs topic. It is bound to this log's identity when the log is entered.
    """

    def __init__(self, log: Log, archive: Archive) -> None:
        self.live = log
        self.archive = archive

    async def __aenter__(self) -> Self:
        await self.live.__aenter__()
        self.archive.cluster_id = self.live.cluster_id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.live.__aexit__(kind, error, trace)

    @property
    def cluster_id(self) -> str:
        return self.live.cluster_id

    async def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self.live.ensure_topics(specs)

    async def topic_names(self) -> frozenset[str]:
        return await self.live.topic_names()

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> Appended:
        return await self.live.append(topic, partition, value, key=key, headers=headers)

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """From the archive's first offset on, where it joins."""
        bounds = await self.live.bounds(topic, partition)
        start = await self.archived_start(topic, partition, bounds.start)
        return bounds if start is None else Bounds(start, bounds.end)

    async def archived_start(self, topic: str, partition: int, live_start: int) -> int | None:
        """The first archived offset, if everything from there up to ``live_start`` is archived."""
        if topic != self.archive.topic or live_start == 0:
            return None
        async with _as_log(topic, partition):
            if not await self.archive.reaches(partition, live_start):
                return None
            archived = await self.archive.bounds(partition)
        return archived.start if archived is not None and archived.start < live_start else None

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int:
        start = (await self.live.bounds(topic, partition)).start
        if await self.archived_start(topic, partition, start) is not None:
            async with _as_log(topic, partition):
                found = await self.archive.offset_at(partition, time_ms, start)
            if found is not None:
                return found
        return await self.live.offset_at(topic, partition, time_ms)

    async def truncate(self, topic: str, partition: int, before_offset: int) -> None:
        await self.live.truncate(topic, partition, before_offset)

    def tail(self, starts: Mapping[TopicPartition, int]) -> Tail:
        return ArchivedTail(self, starts)


class ArchivedTail:
    """Follows partitions, each from the archive up to where the log begins, and on the log from there on."""

    def __init__(self, log: ArchivedLog, starts: Mapping[TopicPartition, int]) -> None:
        self._log = log
        self._topic = log.archive.topic
        self._starts = dict(starts)
        self._unsettled: dict[TopicPartition, int] = {}
        """Of the jobs topic: to be found out whether the log or the archive has it."""
        self._archived: dict[TopicPartition, ArchiveCursor] = {}
        self._live: Tail | None = None

    async def __aenter__(self) -> Self:
        live = self._log.live.tail(
            {where: offset for where, offset in self._starts.items() if where[0] != self._topic}
        )
        self._unsettled = {where: offset for where, offset in self._starts.items() if where[0] == self._topic}
        await live.__aenter__()
        self._live = live
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.__aexit__(kind, error, trace)

    def follow(self, topic: str, partition: int, offset: int) -> None:
        where = (topic, partition)
        if topic != self._topic:
            self._open().follow(topic, partition, offset)
            return
        self._open().drop(topic, partition)
        self._archived.pop(where, None)
        self._unsettled[where] = offset

    def drop(self, topic: str, partition: int) -> None:
        self._unsettled.pop((topic, partition), None)
        self._archived.pop((topic, partition), None)
        self._open().drop(topic, partition)

    async def poll(self, max_wait_ms: int, max_records: int = 5_000) -> Sequence[Record]:
        live = self._open()
        if self._unsettled:
            await self._settle(live)
        if self._archived:
            records = await self._next_archived(max_records)
            if records:
                return records
        try:
            return await live.poll(max_wait_ms, max_records)
        except OffsetTrimmed as error:
            self._take_back(live, error)
            return ()

    async def _settle(self, live: Tail) -> None:
        for where, offset in list(self._unsettled.items()):
            bounds = await self._log.live.bounds(*where)
            if self._unsettled.get(where) != offset:
                continue
            if offset >= bounds.start:
                live.follow(*where, offset)
            else:
                start = await self._log.archived_start(*where, bounds.start)
                if start is None or offset < start:
                    known = bounds if start is None else Bounds(start, bounds.end)
                    check_offset(*where, offset, known)
                self._archived[where] = self._log.archive.read(where[1], offset)
            del self._unsettled[where]

    async def _next_archived(self, max_records: int) -> Sequence[Record]:
        """Records of one partition; the others have their turn in the polls that follow."""
        where, cursor = next(iter(self._archived.items()))
        start = (await self._log.live.bounds(*where)).start
        async with _as_log(*where):
            records = await cursor.next(max_records)
        if self._archived.get(where) is not cursor:
            # Moved or dropped while it was read.
            return ()
        del self._archived[where]
        if not records or cursor.offset >= start:
            self._unsettled[where] = cursor.offset
        else:
            self._archived[where] = cursor
        return records

    def _take_back(self, live: Tail, error: OffsetTrimmed) -> None:
        """The log was trimmed past a slow reader: the archive may have what it wants."""
        where = (str(error.details.get("topic", "")), int(error.details.get("partition", -1)))
        if where[0] != self._topic:
            raise error
        live.drop(*where)
        self._unsettled[where] = int(error.details["wanted"])

    def _open(self) -> Tail:
        if self._live is None:
            raise LogUnavailable("The log or this tail of it is closed.")
        return self._live


@contextlib.asynccontextmanager
async def _as_log(topic: str, partition: int) -> AsyncGenerator[None]:
    """Whoever reads a log knows that a log may not answer."""
    # Long stretches are read without ever waiting for anything: others are to have their turn.
    await asyncio.sleep(0)
    try:
        yield
    except BlobsUnavailable as error:
        raise LogUnavailable(
            f"The archive of {topic}-{partition} does not answer: {error.message}"
        ) from error
