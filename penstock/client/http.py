"""Clients of the API: :class:`Client` blocks, :class:`AsyncClient` awaits.

Both drive the same operations, those of :mod:`penstock.client.calls`.

Answers are the API's JSON as dicts. Every method may raise the errors of :mod:`penstock.schemas.errors` that the API
answers with, and ServerUnreachable when it does not answer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from penstock.client.calls import (
    DEFAULT_SERVER,
    Answer,
    BulkResult,
    Call,
    Calls,
    Json,
    Pause,
    error_of,
)
from penstock.client.requests import CloneOptions, JobOptions
from penstock.schemas.errors import ServerUnreachable, SettingsInvalid
from penstock.schemas.events import Priority

REQUEST_TIMEOUT_S = 60.0

_Result = TypeVar("_Result")


def _checked(server: str) -> str:
    server = server.rstrip("/")
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise SettingsInvalid(f"{server!r} is not a server's URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsInvalid(f"{server!r} is not a server's URL (http://host:port)")
    return server


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _answer(response: httpx.Response) -> Answer:
    return Answer(
        response.status_code,
        {name.lower(): value for name, value in response.headers.items()},
        response.content,
    )


class Client:
    """A blocking client. Use as a context manager, from one thread at a time.

    Args:
        server: the API's URL.
        patience_ms: how long to go on trying when the server does not answer or is not ready.
        transport: an httpx transport to send through, for tests.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        patience_ms: int = 10_000,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = _checked(server)
        self._calls = Calls(self.server, patience_ms)
        self._http = httpx.Client(base_url=self.server, timeout=REQUEST_TIMEOUT_S, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def enqueue(self, job_type: str, payload: Any = None, /, **options: Unpack[JobOptions]) -> Json:
        """Put a job on the log; returns it. Without ``id`` it gets one here, so that a repeated call is a duplicate.

        Raises:
            IdInUse: another job with this id and a different body exists.
            InvalidField: an option or value is not allowed.
        """
        return self._run(self._calls.enqueue(job_type, payload, options))

    def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> BulkResult:
        """Put many jobs on the log, each a mapping with ``type``, ``payload`` and options; sent in chunks."""
        return self._run(self._calls.enqueue_many(requests))

    def cancel(self, job_id: str, reason: str = "") -> Json:
        """The job, cancelled; one that runs is told to stop, and shows ``cancel_requested`` until it has ended.

        Like every change of a job it raises JobNotFound, and Conflict where the job's state does not allow it.
        """
        return self._run(self._calls.change(job_id, "cancel", {"reason": reason or None}))

    def retry(self, job_id: str, attempts: int | None = None) -> Json:
        """The job, ready to run again: one that ended without success, or waits for its next attempt.

        Args:
            attempts: how many more it gets; as many as it began with, or has, where None.
        """
        return self._run(self._calls.change(job_id, "retry", {"attempts": attempts}))

    def reschedule(
        self, job_id: str, *, run_at: datetime | str | None = None, delay_ms: int | None = None
    ) -> Json:
        """The job, waiting for another time; one that has passed is now."""
        fields = {"run_at": run_at, "delay_ms": delay_ms}
        return self._run(self._calls.change(job_id, "reschedule", fields))

    def prioritise(self, job_id: str, priority: Priority) -> Json:
        """The waiting job, with another priority."""
        return self._run(self._calls.change(job_id, "priority", {"priority": priority}))

    def move(self, job_id: str, *, queue: str | None = None, pool: str | None = None) -> Json:
        """The waiting job, in another queue or pool."""
        return self._run(self._calls.change(job_id, "move", {"queue": queue, "pool": pool}))

    def hold(self, job_id: str, reason: str = "") -> Json:
        """The waiting job, kept from running until :meth:`unhold`."""
        return self._run(self._calls.change(job_id, "hold", {"reason": reason or None}))

    def unhold(self, job_id: str) -> Json:
        """The job, waiting again as it did when it was held."""
        return self._run(self._calls.change(job_id, "unhold", {}))

    def delete(self, job_id: str) -> Json:
        """The job, out of all lists and counts; one that runs has to be cancelled first. Its history stays."""
        return self._run(self._calls.change(job_id, "delete", {}))

    def clone(self, job_id: str, /, **changes: Unpack[CloneOptions]) -> Json:
        """A new job with the payload and settings of this one, save for what is given. It runs at once."""
        return self._run(self._calls.clone(job_id, changes))

    def get(self, job_id: str) -> Json:
        """A job. Raises JobNotFound."""
        return self._run(self._calls.get(job_id))

    def history(self, job_id: str) -> list[Json]:
        """All that happened to a job, in log order. Raises JobNotFound."""
        return self._run(self._calls.history(job_id))

    def result(self, job_id: str, timeout_ms: int = 0) -> Any:
        """What the job returned. Raises Conflict where it has not succeeded.

        Args:
            timeout_ms: how long to wait for its end; then TimeoutError.
        """
        return self._run(self._calls.result(job_id, timeout_ms))

    def jobs(self, *, state: str = "", queue: str = "", type: str = "") -> Iterator[Json]:
        """Jobs, newest first, read page by page; empty filters do not filter."""
        cursor = ""
        while True:
            page = self.jobs_page(cursor=cursor, state=state, queue=queue, type=type)
            yield from page["items"]
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    def jobs_page(
        self, *, cursor: str = "", limit: int = 200, state: str = "", queue: str = "", type: str = ""
    ) -> Json:
        """One page: ``items``, ``next_cursor`` (null on the last) and the exact ``total``."""
        return self._run(self._calls.jobs_page(cursor, limit, state=state, queue=queue, type=type))

    def wait(self, job_id: str, timeout_ms: int = 60_000) -> Json:
        """The job once it has ended. Raises TimeoutError, JobNotFound."""
        return self._run(self._calls.wait(job_id, timeout_ms))

    def counts(self) -> Any:
        """Exact numbers of jobs by state, queue, pool and type."""
        return self._run(self._calls.resource("counts"))

    def queues(self) -> Any:
        return self._run(self._calls.resource("queues"))

    def workers(self) -> Any:
        return self._run(self._calls.resource("workers"))

    def resource(self, name: str, **params: str) -> Any:
        """What ``GET /api/v1/<name>`` answers."""
        return self._run(self._calls.resource(name, **params))

    def sent(self, call: Call) -> Any:
        """What the server answers to any call, with the client's retries; its errors are raised."""
        return self._run(self._calls.ask(call))

    def stream_lines(self, call: Call) -> Generator[bytes, None, None]:
        """Lines of a long answer as they come, without their newlines."""
        try:
            with self._http.stream(call.method, call.path, params=call.params, timeout=None) as response:
                if response.status_code >= 400:
                    response.read()
                    raise error_of(_answer(response))
                rest = b""
                for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from lines
                if rest:
                    yield rest
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"{self.server} does not answer: {_reason(error)}", server=self.server
            ) from error

    def _run(self, steps: Generator[Any, Any, _Result]) -> _Result:
        answer: Answer | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                time.sleep(step.pause_ms / 1_000)
                answer = None
            else:
                answer = self._send(step)

    def _send(self, call: Call) -> Answer:
        try:
            return _answer(self._http.send(_request(self._http, call)))
        except httpx.HTTPError as error:
            return Answer(0, {}, b"", _reason(error))


class AsyncClient:
    """An asynchronous client: arguments and methods as :class:`Client`'s.

    Use as an async context manager, in one event loop.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        patience_ms: int = 10_000,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.server = _checked(server)
        self._calls = Calls(self.server, patience_ms)
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
        """As :meth:`Client.enqueue`."""
        return await self._run(self._calls.enqueue(job_type, payload, options))

    async def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> BulkResult:
        """As :meth:`Client.enqueue_many`."""
        return await self._run(self._calls.enqueue_many(requests))

    async def cancel(self, job_id: str, reason: str = "") -> Json:
        """As :meth:`Client.cancel`."""
        return await self._run(self._calls.change(job_id, "cancel", {"reason": reason or None}))

    async def retry(self, job_id: str, attempts: int | None = None) -> Json:
        """As :meth:`Client.retry`."""
        return await self._run(self._calls.change(job_id, "retry", {"attempts": attempts}))

    async def reschedule(
        self, job_id: str, *, run_at: datetime | str | None = None, delay_ms: int | None = None
    ) -> Json:
        """As :meth:`Client.reschedule`."""
        fields = {"run_at": run_at, "delay_ms": delay_ms}
        return await self._run(self._calls.change(job_id, "reschedule", fields))

    async def prioritise(self, job_id: str, priority: Priority) -> Json:
        """As :meth:`Client.prioritise`."""
        return await self._run(self._calls.change(job_id, "priority", {"priority": priority}))

    async def move(self, job_id: str, *, queue: str | None = None, pool: str | None = None) -> Json:
        """As :meth:`Client.move`."""
        return await self._run(self._calls.change(job_id, "move", {"queue": queue, "pool": pool}))

    async def hold(self, job_id: str, reason: str = "") -> Json:
        """As :meth:`Client.hold`."""
        return await self._run(self._calls.change(job_id, "hold", {"reason": reason or None}))

    async def unhold(self, job_id: str) -> Json:
        """As :meth:`Client.unhold`."""
        return await self._run(self._calls.change(job_id, "unhold", {}))

    async def delete(self, job_id: str) -> Json:
        """As :meth:`Client.delete`."""
        return await self._run(self._calls.change(job_id, "delete", {}))

    async def clone(self, job_id: str, /, **changes: Unpack[CloneOptions]) -> Json:
        """As :meth:`Client.clone`."""
        return await self._run(self._calls.clone(job_id, changes))

    async def get(self, job_id: str) -> Json:
        """As :meth:`Client.get`."""
        return await self._run(self._calls.get(job_id))

    async def history(self, job_id: str) -> list[Json]:
        """As :meth:`Client.history`."""
        return await self._run(self._calls.history(job_id))

    async def result(self, job_id: str, timeout_ms: int = 0) -> Any:
        """As :meth:`Client.result`."""
        return await self._run(self._calls.result(job_id, timeout_ms))

    async def jobs(self, *, state: str = "", queue: str = "", type: str = "") -> AsyncIterator[Json]:
        """As :meth:`Client.jobs`."""
        cursor = ""
        while True:
            page = await self.jobs_page(cursor=cursor, state=state, queue=queue, type=type)
            for job in page["items"]:
                yield job
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    async def jobs_page(
        self, *, cursor: str = "", limit: int = 200, state: str = "", queue: str = "", type: str = ""
    ) -> Json:
        """As :meth:`Client.jobs_page`."""
        return await self._run(self._calls.jobs_page(cursor, limit, state=state, queue=queue, type=type))

    async def wait(self, job_id: str, timeout_ms: int = 60_000) -> Json:
        """As :meth:`Client.wait`."""
        return await self._run(self._calls.wait(job_id, timeout_ms))

    async def counts(self) -> Any:
        """As :meth:`Client.counts`."""
        return await self._run(self._calls.resource("counts"))

    async def queues(self) -> Any:
        return await self._run(self._calls.resource("queues"))

    async def workers(self) -> Any:
        return await self._run(self._calls.resource("workers"))

    async def resource(self, name: str, **params: str) -> Any:
        """As :meth:`Client.resource`."""
        return await self._run(self._calls.resource(name, **params))

    async def sent(self, call: Call) -> Any:
        """As :meth:`Client.sent`."""
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
            return _answer(await self._http.send(_request(self._http, call)))
        except httpx.HTTPError as error:
            return Answer(0, {}, b"", _reason(error))


def _request(http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    headers = dict(call.headers)
    if call.body is not None:
        headers["content-type"] = call.content_type
    return http.build_request(
        call.method, call.path, params=call.params or None, content=call.body, headers=headers
    )


def default_client(**options: Any) -> AsyncClient:
    """An :class:`AsyncClient` of the server that ``PENSTOCK_SERVER`` names."""
    return AsyncClient(os.environ.get("PENSTOCK_SERVER") or DEFAULT_SERVER, **options)
