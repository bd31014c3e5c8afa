"""Many jobs in one call, as a JSON array or as NDJSON that is worked on while it comes in.

Items are taken in slices, so that a call of 100,000 does not keep others waiting, and each slice is appended while
the next one is read. The answer is given when every accepted item is durable; one bad item leaves the others alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.http import (
    JSON,
    NDJSON,
    POSITION_HEADER,
    Answer,
    Operation,
    answer,
    check_media_type,
    chunks,
    read_body,
)
from penstock.api.intake import Intake, Prepared, settled, trace_of
from penstock.api.models import BulkAnswer, BulkItem, decode_jobs
from penstock.api.problems import field_errors
from penstock.client.idgen import new_ids
from penstock.client.refusals import malformed
from penstock.client.requests import JobRequest, all_shallow, check_depth, check_encoding
from penstock.log.bundler import LinePosition
from penstock.schemas.errors import (
    AppendUnknown,
    Conflict,
    InvalidField,
    LogError,
    PenstockError,
    ReadBehind,
    ReadModelUnavailable,
    TooLarge,
)
from penstock.schemas.position import Position, token

SLICE_ITEMS = 1_000
SLICE_BYTES = 512 * 1024
"""Items worked on without a break, as many or as large: a few milliseconds."""

_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode

MOST_APPENDS = 64
"""Appends under way at once; reading goes on when fewer are."""


class _Call:
    """One bulk call: its outcomes by index, and the appends that are under way."""

    def __init__(self, deps: ApiDeps, trace: str) -> None:
        self._deps = deps
        self._trace = trace
        self._intake = Intake(deps)
        self._items: list[BulkItem | None] = []
        self._given: list[tuple[int, Prepared, Position]] = []
        self._positions: list[Position] = []
        self._appends: set[asyncio.Task[None]] = set()
        self._failure: LogError | None = None

    @property
    def begun(self) -> bool:
        """Whether any item was seen."""
        return bool(self._items)

    async def take(self, bodies: Sequence[bytes]) -> None:
        """Prepare a slice and start its appends."""
        first = len(self._items)
        self._items += [None] * len(bodies)
        spares = new_ids(len(bodies), self._deps.topics.partitions)
        prepare, trace, at_ms = self._intake.prepare, self._trace, self._deps.now_ms()
        parts: dict[int, list[tuple[int, Prepared]]] = {}
        for index, asked, spare in zip(count(first), self._asked(first, bodies), spares, strict=False):
            try:
                if isinstance(asked, PenstockError):
                    raise asked
                prepared = prepare(asked[0], asked[1], at_ms, trace, spare)
            except PenstockError as error:
                self._items[index] = _rejected(index, error)
                continue
            parts.setdefault(prepared.partition, []).append((index, prepared))
        await self._check_rules(parts)
        await self._store_large(parts)
        for partition, items in ((partition, items) for partition, items in parts.items() if items):
            while len(self._appends) >= MOST_APPENDS:
                await asyncio.wait(self._appends, return_when=asyncio.FIRST_COMPLETED)
            append = asyncio.create_task(self._append(partition, items))
            self._appends.add(append)
            append.add_done_callback(self._appends.discard)
        await asyncio.sleep(0)

    async def _check_rules(self, parts: dict[int, list[tuple[int, Prepared]]]) -> None:
        """Take out what the log does not know yet."""
        versions = {one.needs_rules for items in parts.values() for _, one in items}
        for version in sorted(versions - {1}):
            asked = {
                partition: version
                for partition, items in parts.items()
                if any(one.needs_rules == version for _, one in items)
            }
            try:
                await self._intake.require_rules(asked)
            except (Conflict, ReadModelUnavailable) as error:
                for partition in asked:
                    for index, prepared in parts[partition]:
                        if prepared.needs_rules == version:
                            self._items[index] = _rejected(index, error, prepared.job)
                    parts[partition] = [item for item in parts[partition] if item[1].needs_rules != version]

    async def _store_large(self, parts: dict[int, list[tuple[int, Prepared]]]) -> None:
        """Put payloads that are too large for the log beside it; take out those that cannot be."""
        large = [(index, one) for items in parts.values() for index, one in items if not one.line]
        if not large:
            return
        done = await asyncio.gather(*(self._intake.stored(one) for _, one in large), return_exceptions=True)
        settled_by_index = dict(zip((index for index, _ in large), done, strict=True))
        for partition, items in parts.items():
            kept: list[tuple[int, Prepared]] = []
            for index, prepared in items:
                match settled_by_index.get(index, prepared):
                    case Prepared() as stored:
                        kept.append((index, stored))
                    case PenstockError() as error:
                        self._items[index] = _rejected(index, error, prepared.job)
                    case failure:
                        raise failure
            parts[partition] = kept

    def reject(self, error: PenstockError) -> None:
        """Note one more item that is not taken."""
        self._items.append(_rejected(len(self._items), error))

    def _asked(self, first: int, bodies: Sequence[bytes]) -> Sequence[tuple[JobRequest, str] | PenstockError]:
        """The request of each item, or why it is not taken."""
        options = self._deps.options
        most_bytes = self._deps.job_max_bytes
        room = options.bulk_max_items - first
        if len(bodies) <= room and max(map(len, bodies), default=0) <= most_bytes:
            return decode_jobs(bodies)
        found: list[tuple[JobRequest, str] | PenstockError] = []
        for number, body in enumerate(bodies):
            if number >= room:
                found.append(TooLarge(f"at most {options.bulk_max_items} items a call are taken"))
            elif len(body) > most_bytes:
                found.append(TooLarge(f"the item has {len(body)} bytes, at most {most_bytes} are allowed"))
            else:
                found += decode_jobs([body])
        return found

    async def _append(self, partition: int, items: Sequence[tuple[int, Prepared]]) -> None:
        try:
            async with asyncio.timeout(6 * self._deps.options.append_wait_ms / 1_000):
                places = await self._deps.writer.append_many(partition, [item.line for _, item in items])
        except (LogError, TimeoutError) as caught:
            error = caught if isinstance(caught, LogError) else AppendUnknown()
            self._failure = error
            for index, prepared in items:
                self._items[index] = _unknown(index, prepared, error)
            return
        self._deps.metrics.appended(len(items))
        # They land in order, so the last one's place is the highest.
        self._positions.append(_position(partition, places[-1]))
        outcomes = self._items
        for (index, prepared), place in zip(items, places, strict=True):
            outcomes[index] = BulkItem(index=index, status="accepted", id=prepared.job)
            if prepared.given:
                self._given.append((index, prepared, _position(partition, place)))

    async def finish(self) -> tuple[BulkAnswer, str]:
        """Wait until all is durable and decided: the answer and its position token.

        Raises:
            LogError: the log took nothing at all; ``details["items"]`` has the ids with which to try again.
        """
        if self._appends:
            await asyncio.gather(*self._appends)
        if self._given:
            await self._settle()
        items = [item for item in self._items if item is not None]
        statuses = [item.status for item in items]
        accepted, unknown = statuses.count("accepted"), statuses.count("unknown")
        if self._failure is not None and not self._positions:
            self._failure.details["items"] = items
            raise self._failure
        return BulkAnswer(accepted, len(items) - accepted - unknown, unknown, items), token(self._positions)

    async def _settle(self) -> None:
        """Ids that came with the request may have been there: ask the fold."""
        try:
            verdicts = await self._intake.verdicts(
                [(prepared, position) for _, prepared, position in self._given]
            )
        except (ReadBehind, ReadModelUnavailable) as error:
            for index, prepared, _ in self._given:
                self._items[index] = _unknown(index, prepared, error)
            return
        for (index, prepared, position), verdict in zip(self._given, verdicts, strict=True):
            try:
                taken = settled(prepared, position, verdict)
            except Conflict as error:
                self._items[index] = _rejected(index, error, prepared.job)
                continue
            if not taken.created:
                code = "duplicate" if taken.view.id == prepared.job else "existing"
                self._items[index] = BulkItem(index=index, status="accepted", id=taken.view.id, code=code)


def _position(partition: int, place: LinePosition) -> Position:
    return Position(partition, place.offset, place.line_no)


def _rejected(index: int, error: PenstockError, job_id: str = "") -> BulkItem:
    return BulkItem(
        index=index,
        status="rejected",
        id=job_id,
        code=error.code,
        message=error.message,
        errors=field_errors(error),
    )


def _unknown(index: int, prepared: Prepared, error: PenstockError) -> BulkItem:
    return BulkItem(index=index, status="unknown", id=prepared.job, code=error.code, message=error.message)


async def create_jobs(request: Request) -> Response:
    deps = deps_of(request)
    call = _Call(deps, trace_of(request))
    if check_media_type(request, JSON, NDJSON) == NDJSON:
        await _take_lines(request, deps, call)
    else:
        await _take_array(request, deps, call)
    body, position = await call.finish()
    return answer(body, headers={POSITION_HEADER: position} if position else None)


async def _take_array(request: Request, deps: ApiDeps, call: _Call) -> None:
    bodies = _items_of(await read_body(request, deps.options.bulk_max_bytes))
    if len(bodies) > deps.options.bulk_max_items:
        raise TooLarge(f"{len(bodies)} items, at most {deps.options.bulk_max_items} a call are taken")
    for part in _slices(bodies):
        await call.take(part)


def _items_of(body: bytes) -> list[bytes]:
    """Items of an array as they were written. Raises MalformedJson, InvalidField."""
    check_encoding(body)
    try:
        items = [bytes(item) for item in _decode_array(body)]
    except msgspec.ValidationError as error:
        raise InvalidField("the body is a JSON array of jobs", field="$") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed("the body", body, error) from error
    if not all_shallow(items):
        check_depth(body)
    return items


def _slices(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Full slices, and last what is left over."""
    first = size = 0
    for index, body in enumerate(bodies):
        size += len(body)
        if size > SLICE_BYTES or index - first == SLICE_ITEMS:
            if index > first:
                yield bodies[first:index]
            first, size = index, len(body)
    yield bodies[first:]


async def _take_lines(request: Request, deps: ApiDeps, call: _Call) -> None:
    waiting: Sequence[bytes] = []
    try:
        async for lines in _lines(chunks(request, deps.options.bulk_max_bytes)):
            *full, waiting = _slices([*waiting, *lines])
            for part in full:
                await call.take(part)
    except TooLarge as error:
        if not waiting and not call.begun:
            raise
        # What came before stands, and the caller is told what was not read.
        await call.take(waiting)
        call.reject(TooLarge(f"{error.message}; what follows was not read"))
        return
    await call.take(waiting)


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines that are not blank, as they come in."""
    rest: list[bytes] = []
    async for part in parts:
        head, newline, tail = part.rpartition(b"\n")
        if not newline:
            rest.append(part)
            continue
        lines = b"".join([*rest, head]).split(b"\n")
        rest = [tail] if tail else []
        yield [line for line in lines if line and not line.isspace()]
    last = b"".join(rest)
    if last and not last.isspace():
        yield [last]


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/v1/jobs/bulk",
        endpoint=create_jobs,
        summary="Put many jobs in",
        tag="jobs",
        body=list[JobRequest],
        body_media_types=(JSON, NDJSON),
        headers={"traceparent": "W3C trace context, kept with each job."},
        answers={
            200: Answer(
                "What became of each item.",
                BulkAnswer,
                headers={POSITION_HEADER: "Position token over all partitions that were written to."},
            )
        },
        problems=(400, 413, 415, 422, 503),
    ),
)
