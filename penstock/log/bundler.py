"""Single lines become bundles: one record in flight a partition, and what arrives meanwhile is the next one.

An idle line therefore goes at once, a flood makes large records; nothing waits on a timer. A record whose write is
unknown is sent again with the very same lines: they carry event ids, and the fold drops what it has already seen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import repeat
from types import TracebackType
from typing import NamedTuple, Self

from penstock.log.port import Appended, Headers, Log
from penstock.schemas.errors import AppendRefused, AppendUnknown, LogError, RecordTooLarge
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES, MAX_LINE_BYTES

_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0


class LinePosition(NamedTuple):
    """Where a line stands. ``time_ms`` is the record's log time, Unix ms.

    Where the log acknowledged without an offset, this is the first line of the last record that the partition had
    afterwards: the line is in that record or before it.
    """

    offset: int
    line_no: int
    time_ms: int


class _Call:
    """One caller's lines, which may end up in several records."""

    __slots__ = ("future", "parts", "waiting")

    def __init__(self, future: asyncio.Future[list[LinePosition]]) -> None:
        self.future = future
        self.parts: list[tuple[int, list[LinePosition]]] = []
        self.waiting = 0

    def landed(self, first: int, positions: list[LinePosition]) -> None:
        self.parts.append((first, positions))
        self.waiting -= 1
        if not self.waiting and not self.future.done():
            self.parts.sort()
            lists = [part for _, part in self.parts]
            self.future.set_result(lists[0] if len(lists) == 1 else [one for part in lists for one in part])

    def failed(self, error: LogError) -> None:
        self.waiting -= 1
        if not self.future.done():
            self.future.set_exception(error)


class _Chunk(NamedTuple):
    """Lines of one call that stay together; ``first`` is the number of the first one in the call."""

    call: _Call
    first: int
    lines: Sequence[bytes]
    body: bytes


class _Lane:
    """A partition's queue, and the task that empties it while there is something in it."""

    __slots__ = ("chunks", "task")

    def __init__(self) -> None:
        self.chunks: deque[_Chunk] = deque()
        self.task: asyncio.Task[None] | None = None


class Bundler:
    """Appends lines to one topic of a log, bundled. Use as an async context manager: leaving it flushes.

    Args:
        log: where to; must stay open until this is closed.
        topic: name of the topic.
        key, headers: given to every record.
        give_up_ms: how long an unknown or for now refused write is repeated.
        queue_bytes: what may wait; beyond it ``append`` waits for room and ``submit`` is refused.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        give_up_ms: int = 30_000,
        queue_bytes: int = 64 * 1024 * 1024,
        max_bundle_bytes: int = MAX_BUNDLE_BYTES,
        max_bundle_lines: int = MAX_BUNDLE_LINES,
    ) -> None:
        self._log = log
        self._topic = topic
        self._key = key
        self._headers = headers
        self._give_up_ms = give_up_ms
        self._queue_bytes = queue_bytes
        self._max_bytes = max_bundle_bytes
        self._max_lines = max_bundle_lines
        self._max_line_bytes = min(MAX_LINE_BYTES, max_bundle_bytes)
        self._lanes: dict[int, _Lane] = {}
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._room.set()
        await self.flush()

    @property
    def queued_bytes(self) -> int:
        """Bytes waiting or under way."""
        return self._queued_bytes

    async def append(self, partition: int, line: bytes) -> LinePosition:
        """Append one line and wait until it is durable.

        Raises:
            RecordTooLarge, AppendRefused: certainly not written.
            AppendUnknown: perhaps written, after every retry.
            ValueError: the line holds a newline.
        """
        return (await self.append_many(partition, (line,)))[0]

    async def append_many(self, partition: int, lines: Sequence[bytes]) -> list[LinePosition]:
        """Append lines in order and wait until all are durable. Errors as in :meth:`append`; a refusal or an unknown
        write of a later record leaves the earlier ones written."""
        while self._queued_bytes > self._queue_bytes and not self._closed:
            self._room.clear()
            await self._room.wait()
        return await self._enqueue(partition, lines)

    def submit(self, partition: int, lines: Sequence[bytes]) -> asyncio.Future[list[LinePosition]]:
        """Queue lines without waiting. The future ends as :meth:`append_many` would; whoever drops it need not read it.

        Raises:
            AppendRefused: too much is queued, or closed.
        """
        if self._queued_bytes > self._queue_bytes:
            raise AppendRefused("Too many lines are waiting for the log.", transient=True)
        future = self._enqueue(partition, lines)
        future.add_done_callback(_mark_read)
        return future

    async def flush(self) -> None:
        """Wait until nothing is queued or under way."""
        while tasks := [lane.task for lane in self._lanes.values() if lane.task is not None]:
            await asyncio.wait(tasks)

    def _enqueue(self, partition: int, lines: Sequence[bytes]) -> asyncio.Future[list[LinePosition]]:
        if self._closed:
            raise AppendRefused("The bundler is closed.")
        future: asyncio.Future[list[LinePosition]] = asyncio.get_running_loop().create_future()
        if not lines:
            future.set_result([])
            return future
        call = _Call(future)
        chunks = self._chunks(call, lines)
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane()
        call.waiting = len(chunks)
        lane.chunks += chunks
        for chunk in chunks:
            self._queued_bytes += len(chunk.body)
        if lane.task is None:
            lane.task = asyncio.create_task(self._empty(partition, lane), name=f"bundler-{partition}")
        return future

    def _chunks(self, call: _Call, lines: Sequence[bytes]) -> list[_Chunk]:
        """Lines as they will stand in records, once they are known to be lines."""
        if max(map(len, lines)) > self._max_line_bytes:
            index = next(i for i, line in enumerate(lines) if len(line) > self._max_line_bytes)
            raise RecordTooLarge(
                f"A line of {len(lines[index])} bytes is longer than {self._max_line_bytes}.", index=index
            )
        chunks = [_Chunk(call, first, part, b"\n".join(part)) for first, part in self._split(lines)]
        for chunk in chunks:
            if chunk.body.count(b"\n") >= len(chunk.lines):
                raise ValueError("a line must not hold a newline")
        return chunks

    def _split(self, lines: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Runs of lines that each fit into a record, with the number of their first line."""
        if len(lines) <= self._max_lines and sum(map(len, lines)) + len(lines) - 1 <= self._max_bytes:
            yield 0, lines
            return
        first, size = 0, -1
        for index, line in enumerate(lines):
            if index - first == self._max_lines or size + 1 + len(line) > self._max_bytes:
                yield first, lines[first:index]
                first, size = index, -1
            size += 1 + len(line)
        yield first, lines[first:]

    async def _empty(self, partition: int, lane: _Lane) -> None:
        try:
            while lane.chunks:
                await self._send(partition, self._next_bundle(lane))
        finally:
            lane.task = None
            # Only reached with a queue when the task is cancelled, as at the end of the event loop.
            while lane.chunks:
                self._finish(lane.chunks.popleft(), AppendRefused("The bundler was stopped."))

    def _next_bundle(self, lane: _Lane) -> list[_Chunk]:
        bundle = [lane.chunks.popleft()]
        size, count = len(bundle[0].body), len(bundle[0].lines)
        while lane.chunks:
            chunk = lane.chunks[0]
            size += 1 + len(chunk.body)
            count += len(chunk.lines)
            if size > self._max_bytes or count > self._max_lines:
                break
            bundle.append(lane.chunks.popleft())
        return bundle

    async def _send(self, partition: int, bundle: list[_Chunk]) -> None:
        try:
            appended = await self._append(partition, b"\n".join([chunk.body for chunk in bundle]))
        except RecordTooLarge as error:
            # The topic takes less than a full bundle: only a line that is too large by itself may fail.
            if len(bundle) > 1:
                for chunk in bundle:
                    await self._send(partition, [chunk])
            elif len(bundle[0].lines) > 1:
                for half in self._halves(bundle[0]):
                    await self._send(partition, [half])
            else:
                self._finish(bundle[0], error)
            return
        except LogError as error:
            for chunk in bundle:
                self._finish(chunk, error)
            return
        except BaseException:
            for chunk in bundle:
                self._finish(chunk, AppendUnknown("The bundler was stopped during the append."))
            raise
        offset, time_ms = appended
        if offset < 0:
            await self._landed_somewhere(partition, bundle, time_ms)
            return
        line_no = 0
        for chunk in bundle:
            self._release(chunk)
            count = len(chunk.lines)
            chunk.call.landed(chunk.first, _positions(offset, line_no, count, time_ms))
            line_no += count

    async def _landed_somewhere(self, partition: int, bundle: list[_Chunk], time_ms: int) -> None:
        try:
            end = (await self._log.bounds(self._topic, partition)).end
        except LogError as error:
            for chunk in bundle:
                self._finish(chunk, AppendUnknown(f"Written, but nobody can say where: {error.message}"))
            return
        position = LinePosition(max(end - 1, 0), 0, time_ms)
        for chunk in bundle:
            self._release(chunk)
            chunk.call.landed(chunk.first, [position] * len(chunk.lines))

    async def _append(self, partition: int, value: bytes) -> Appended:
        """Append, and again while the outcome is unknown or the refusal may pass, until the time to give up."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._give_up_ms / 1000
        pause_s = _FIRST_RETRY_S
        unknown: AppendUnknown | None = None
        while True:
            try:
                return await self._log.append(
                    self._topic, partition, value, key=self._key, headers=self._headers
                )
            except AppendUnknown as error:
                unknown = last = error
            except AppendRefused as error:
                last = error
                if not error.details.get("transient"):
                    raise unknown or error from error
            if loop.time() + pause_s > give_up:
                # One copy may have landed, whatever the last attempt says.
                raise unknown or last from last
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LAST_RETRY_S)

    def _halves(self, chunk: _Chunk) -> list[_Chunk]:
        middle = len(chunk.lines) // 2
        chunk.call.waiting += 1
        halves = [
            _Chunk(chunk.call, chunk.first + at, part, b"\n".join(part))
            for at, part in ((0, chunk.lines[:middle]), (middle, chunk.lines[middle:]))
        ]
        self._queued_bytes += sum(len(half.body) for half in halves) - len(chunk.body)
        return halves

    def _finish(self, chunk: _Chunk, error: LogError) -> None:
        self._release(chunk)
        # Each waiter gets an error of its own: a shared one would gather every waiter's traceback.
        chunk.call.failed(type(error)(error.message, **error.details))

    def _release(self, chunk: _Chunk) -> None:
        self._queued_bytes -= len(chunk.body)
        if self._queued_bytes <= self._queue_bytes:
            self._room.set()


def _positions(offset: int, first: int, count: int, time_ms: int) -> list[LinePosition]:
    """Of ``count`` lines of a record, from line ``first`` on."""
    return list(map(LinePosition, repeat(offset, count), range(first, first + count), repeat(time_ms, count)))


def _mark_read(future: asyncio.Future[list[LinePosition]]) -> None:
    """Nobody has to look at a submitted line's error; asyncio would complain otherwise."""
    if not future.cancelled():
        future.exception()
