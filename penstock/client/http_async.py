"""The asynchronous client of the API: see :mod:`penstock.client.http`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from penstock.client.bulk import BULK_LINES, BulkResult
from penstock.client.calls import Answer, Call, Calls, Json, Pause, error_of
from penstock.client.event_stream import EVENTS, EventReader, events_params
from penstock.client.requests import CloneOptions, JobOptions
from penstock.client.sending import (
    RECONNECT_S,
    REQUEST_TIMEOUT_S,
    STREAM_TIMEOUT,
    answer,
    checked,
    moment_text,
    reason,
    request,
    stand_in,
)
from penstock.schemas.errors import PenstockError, ServerUnreachable
from penstock.schemas.events import Priority

_Result = TypeVar("_Result")


class AsyncClient:
    """An asynchronous client: arguments and methods as :class:`~penstock.client.http.Client`'s.

    Use as an async context manager, in one event loop.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        patience_ms: int = 10_000,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.server = checked(server)
        self._calls = Calls(self.server, patience_ms)
        if transport is None and (instead := stand_in()) is not None:
            transport = instead.asynchronous
        self._http = httpx.AsyncClient(base_url=self.server, timeout=REQUEST_TIMEOUT_S, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def enqueue(self, job_type: str, payload: Any = None, /, **options: Unpack[JobOptions]) -> Json:
        """As :meth:`~penstock.client.http.Client.enqueue`."""
        return await self._run(self._calls.enqueue(job_type, payload, options))

    async def enqueue_many(
        self, requests: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]
    ) -> BulkResult:
        """As :meth:`~penstock.client.http.Client.enqueue_many`; an asynchronous generator may bring the requests."""
        if not isinstance(requests, AsyncIterable):
            return await self._run(self._calls.enqueue_many(requests))
        result, chunk = BulkResult(), list[Mapping[str, Any]]()
        async for request_given in requests:
            chunk.append(request_given)
            if len(chunk) == BULK_LINES:
                result.add(await self._run(self._calls.enqueue_many(chunk)))
                chunk = []
        result.add(await self._run(self._calls.enqueue_many(chunk)))
        return result

    async def cancel(self, job_id: str, reason: str = "") -> Json:
        """As :meth:`~penstock.client.http.Client.cancel`."""
        return await self._run(self._calls.change(job_id, "cancel", {"reason": reason or None}))

    async def retry(self, job_id: str, attempts: int | None = None) -> Json:
        """As :meth:`~penstock.client.http.Client.retry`."""
        return await self._run(self._calls.change(job_id, "retry", {"attempts": attempts}))

    async def reschedule(
        self, job_id: str, *, run_at: datetime | str | None = None, delay_ms: int | None = None
    ) -> Json:
        """As :meth:`~penstock.client.http.Client.reschedule`."""
        fields = {"run_at": run_at, "delay_ms": delay_ms}
        return await self._run(self._calls.change(job_id, "reschedule", fields))

    async def prioritise(self, job_id: str, priority: Priority) -> Json:
        """As :meth:`~penstock.client.http.Client.prioritise`."""
        return await self._run(self._calls.change(job_id, "priority", {"priority": priority}))

    async def move(self, job_id: str, *, queue: str | None = None, pool: str | None = None) -> Json:
        """As :meth:`~penstock.client.http.Client.move`."""
        return await self._run(self._calls.change(job_id, "move", {"queue": queue, "pool": pool}))

    async def hold(self, job_id: str, reason: str = "") -> Json:
        """As :meth:`~penstock.client.http.Client.hold`."""
        return await self._run(self._calls.change(job_id, "hold", {"reason": reason or None}))

    async def unhold(self, job_id: str) -> Json:
        """As :meth:`~penstock.client.http.Client.unhold`."""
        return await self._run(self._calls.change(job_id, "unhold", {}))

    async def delete(self, job_id: str) -> Json:
        """As :meth:`~penstock.client.http.Client.delete`."""
        return await self._run(self._calls.change(job_id, "delete", {}))

    async def clone(self, job_id: str, /, **changes: Unpack[CloneOptions]) -> Json:
        """As :meth:`~penstock.client.http.Client.clone`."""
        return await self._run(self._calls.clone(job_id, changes))

    async def get(self, job_id: str, at: datetime | str | None = None) -> Json:
        """As :meth:`~penstock.client.http.Client.get`."""
        return await self._run(self._calls.get(job_id, moment_text(at)))

    async def history(self, job_id: str) -> list[Json]:
        """As :meth:`~penstock.client.http.Client.history`."""
        return await self._run(self._calls.history(job_id))

    async def result(self, job_id: str, timeout_ms: int = 0) -> Any:
        """As :meth:`~penstock.client.http.Client.result`."""
        return await self._run(self._calls.result(job_id, timeout_ms))

    async def payload(self, job_id: str) -> Any:
        """As :meth:`~penstock.client.http.Client.payload`."""
        return await self._run(self._calls.payload(job_id))

    async def log_page(
        self,
        job_id: str,
        attempt: int,
        *,
        first: int = 0,
        wait_ms: int = 0,
        contains: str = "",
        level: str = "",
    ) -> Json:
        """As :meth:`~penstock.client.http.Client.log_page`."""
        return await self._run(self._calls.log_page(job_id, attempt, first, wait_ms, contains, level))

    async def sweep_claims(self, older_than_ms: int = 7 * 86_400_000, *, dry_run: bool = True) -> Json:
        """As :meth:`~penstock.client.http.Client.sweep_claims`."""
        return await self._run(self._calls.sweep_claims(older_than_ms, dry_run))

    async def jobs(
        self, *, state: str = "", queue: str = "", type: str = "", batch: str = "", workflow: str = "",
        at: datetime | str | None = None,
    ) -> AsyncIterator[Json]:  # fmt: skip
        """As :meth:`~penstock.client.http.Client.jobs`."""
        cursor = ""
        while True:
            page = await self.jobs_page(
                cursor=cursor, state=state, queue=queue, type=type, batch=batch, workflow=workflow, at=at
            )
            for job in page["items"]:
                yield job
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    async def search(
        self, filter: Mapping[str, Any] | None = None, *, sort: str = "",
        at: datetime | str | None = None, **more: Any,
    ) -> AsyncIterator[Json]:  # fmt: skip
        """As :meth:`~penstock.client.http.Client.search`."""
        cursor = ""
        while True:
            page = await self.search_page({**(filter or {}), **more}, sort=sort, cursor=cursor, at=at)
            for job in page["items"]:
                yield job
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    async def search_page(
        self, filter: Mapping[str, Any] | None = None, *, sort: str = "", cursor: str = "", limit: int = 200,
        at: datetime | str | None = None,
    ) -> Json:  # fmt: skip
        """As :meth:`~penstock.client.http.Client.search_page`."""
        return await self._run(self._calls.search_page(filter or {}, sort, cursor, limit, moment_text(at)))

    async def operate(
        self, action: str, *, ids: Iterable[str] | None = None, filter: Mapping[str, Any] | None = None,
        args: Mapping[str, Any] | None = None, dry_run: bool = False,
    ) -> Json:  # fmt: skip
        """As :meth:`~penstock.client.http.Client.operate`."""
        return await self._run(self._calls.operate(action, ids, filter, args or {}, dry_run=dry_run))

    async def operation(self, operation_id: str, timeout_ms: int = 0) -> Json:
        """As :meth:`~penstock.client.http.Client.operation`."""
        return await self._run(self._calls.operation(operation_id, timeout_ms))

    async def operation_items(self, operation_id: str) -> AsyncIterator[Json]:
        """As :meth:`~penstock.client.http.Client.operation_items`."""
        cursor = ""
        while True:
            page = await self._run(self._calls.operation_items(operation_id, cursor))
            for item in page["items"]:
                yield item
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    async def cancel_operation(self, operation_id: str) -> Json:
        """As :meth:`~penstock.client.http.Client.cancel_operation`."""
        return await self._run(self._calls.cancel_operation(operation_id))

    async def events(self, *, after: str = "", reconnect: bool = True, **filters: str) -> AsyncIterator[Json]:
        """As :meth:`~penstock.client.http.Client.events`."""
        while True:
            reader = EventReader()
            call = Call("GET", EVENTS, events_params(after, filters))
            try:
                async with self._http.stream(
                    call.method, call.path, params=call.params, timeout=STREAM_TIMEOUT
                ) as response:
                    if response.status_code >= 400:
                        await response.aread()
                        raise error_of(answer(response))
                    async for line in response.aiter_lines():
                        event = reader.take(line)
                        if event is not None:
                            after = event["token"]
                            if "type" in event:
                                yield event
            except PenstockError as error:
                # The server stops, or is not ready yet.
                if not reconnect or error.status != ServerUnreachable.status:
                    raise
            except httpx.HTTPError as error:
                if not reconnect:
                    raise ServerUnreachable(
                        f"{self.server} does not answer: {reason(error)}", server=self.server
                    ) from error
            if not reconnect:
                return
            await asyncio.sleep(RECONNECT_S)

    async def jobs_page(
        self, *, cursor: str = "", limit: int = 200, state: str = "", queue: str = "", type: str = "", batch: str = "",
        workflow: str = "", at: datetime | str | None = None,
    ) -> Json:  # fmt: skip
        """As :meth:`~penstock.client.http.Client.jobs_page`."""
        filters = {"state": state, "queue": queue, "type": type, "batch": batch, "workflow": workflow}
        return await self._run(self._calls.jobs_page(cursor, limit, at=moment_text(at), **filters))

    async def wait(self, job_id: str, timeout_ms: int = 60_000) -> Json:
        """As :meth:`~penstock.client.http.Client.wait`."""
        return await self._run(self._calls.wait(job_id, timeout_ms))

    async def counts(
        self, at: datetime | str | None = None, *, batch: str | None = None, workflow: str | None = None
    ) -> Any:
        """As :meth:`~penstock.client.http.Client.counts`."""
        return await self._run(self._calls.counts(moment_text(at), batch, workflow))

    async def queues(self) -> Any:
        return await self._run(self._calls.resource("queues"))

    async def workers(self) -> Any:
        return await self._run(self._calls.resource("workers"))

    async def drain_worker(self, worker: str) -> Json:
        """As :meth:`~penstock.client.http.Client.drain_worker`."""
        return await self._run(self._calls.tell_worker(worker, "drain"))

    async def stop_worker(self, worker: str) -> Json:
        """As :meth:`~penstock.client.http.Client.stop_worker`."""
        return await self._run(self._calls.tell_worker(worker, "stop"))

    async def resource(self, name: str, **params: str) -> Any:
        """As :meth:`~penstock.client.http.Client.resource`."""
        return await self._run(self._calls.resource(name, **params))

    async def sent(self, call: Call) -> Any:
        """As :meth:`~penstock.client.http.Client.sent`."""
        return await self._run(self._calls.ask(call))

    async def _run(self, steps: Generator[Any, Any, _Result]) -> _Result:
        answer: Answer | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                await asyncio.sleep(step.pause_ms / 1_000)
                answer = None
            else:
                answer = await self._send(step)

    async def _send(self, call: Call) -> Answer:
        try:
            return answer(await self._http.send(request(self._http, call)))
        except httpx.HTTPError as error:
            return Answer(0, {}, b"", reason(error))
