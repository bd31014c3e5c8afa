"""``GET /events``: what happens, as server-sent events that are resumed by position."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Annotated, get_args

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.deps import ApiDeps, deps_of
from penstock.api.filtering import FilterRequest, given_in
from penstock.api.http import Answer, Operation, header, query
from penstock.api.intake import TENANT
from penstock.api.models import Cursor, ShortText
from penstock.api.problems import problem_at
from penstock.api.stream import SLOW_S, Heard, Listener, Listening, cut, serve_until_gone
from penstock.core.job_state import State
from penstock.schemas import events as ev
from penstock.schemas.errors import InvalidField, PenstockError
from penstock.schemas.events import Priority
from penstock.schemas.names import CheckedJobId, CheckedName

EVENT_STREAM = "text/event-stream"
RESUME_HEADER = "Last-Event-ID"
RETRY_MS = 1_000

_TYPES = frozenset(kind.__name__ for kind in get_args(ev.AnyEvent) if issubclass(kind, ev.JobEvent))
_log = logging.getLogger("penstock.api")
_encode = msgspec.json.Encoder(enc_hook=str).encode


class EventsQuery(Struct, frozen=True):
    """What to hear. ``types``: names of events, comma separated. The others are about the event's job as it is now.

    ``after``: the id of an event, or the position token of a write; the header ``Last-Event-ID`` comes before it.
    ``refused``: lines that had no effect are told too.
    """

    after: Cursor | None = None
    types: Annotated[str, Meta(max_length=1_024)] | None = None
    job: CheckedJobId | None = None
    refused: bool = False
    state: State | None = None
    queue: CheckedName | None = None
    type: CheckedName | None = None
    pool: CheckedName | None = None
    priority: Priority | None = None
    tags: CheckedName | None = None
    worker: ShortText | None = None
    unique_key: ShortText | None = None
    concurrency_key: ShortText | None = None
    batch: CheckedName | None = None
    workflow: CheckedName | None = None
    id_prefix: ShortText | None = None


_OF_THE_STREAM = frozenset({"after", "types", "job", "refused"})


def listening_of(asked: EventsQuery) -> Listening:
    """Raises InvalidField."""
    types = frozenset(filter(None, (asked.types or "").split(",")))
    unknown = sorted(types - _TYPES)
    if unknown:
        raise InvalidField(f"types: there is no event {unknown[0]!r}", field="types")
    given = given_in(asked, _OF_THE_STREAM)
    return Listening(
        tenant=TENANT,
        wanted=FilterRequest(**given).plain(),
        types=types,
        job=asked.job or "",
        refused=asked.refused,
    )


async def follow(request: Request) -> Response:
    deps = deps_of(request)
    asked = query(request, EventsQuery)
    after = header(request, RESUME_HEADER.lower().encode()) or asked.after or ""
    listener = Listener(deps, listening_of(asked), after)
    # While this fails it is still an answer with a status, and not a broken stream.
    starts = await listener.starts()
    return EventStream(deps, listener.listen(starts))


class EventStream(Response):
    """Sends what is heard until either side leaves."""

    def __init__(self, deps: ApiDeps, heard: AsyncGenerator[Heard]) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, EVENT_STREAM)
        del self.headers["content-length"]
        self._deps = deps
        self._heard = heard
        self._cut = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await serve_until_gone(self._send_all(scope, send), _until_gone(receive), self._heard)
        cut.set(self._cut)

    async def _send_all(self, scope: Scope, send: Send) -> None:
        try:
            await _send(send, f"retry: {RETRY_MS}\n\n".encode())
            try:
                async with self._deps.parked.wait():
                    async for heard in self._heard:
                        await _send(send, _frame(heard))
            except PenstockError as error:
                await _send(send, b"event: error\ndata: " + _encode(problem_at(scope, error)) + b"\n\n")
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            # It comes back for the rest, behind what it has read. A last chunk would have to wait for room as well,
            # and would say that this was all.
            self._cut = True
            _log.warning("a listener did not read for %g s and was cut off", SLOW_S)


async def _send(send: Send, body: bytes) -> None:
    """Raises TimeoutError for one that does not read."""
    async with asyncio.timeout(SLOW_S):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _frame(heard: Heard) -> bytes:
    if not heard.data:
        # No data: browsers note the id and tell nobody.
        return f": still here\nid: {heard.token}\n\n".encode()
    return f"id: {heard.token}\nevent: {heard.type}\ndata: ".encode() + heard.data + b"\n\n"


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/events",
        endpoint=follow,
        summary="What happens to jobs, as it happens",
        tag="events",
        query=EventsQuery,
        headers={RESUME_HEADER: "Id of the last event that was heard: what follows is told, without a gap."},
        answers={200: Answer("Events, one a line of the log, until either side leaves.", None, EVENT_STREAM)},
        problems=(410, 422, 503),
    ),
)
