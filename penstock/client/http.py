"""The blocking client of the API. :class:`penstock.client.http_async.AsyncClient` awaits.

Both drive the same operations, those of :mod:`penstock.client.calls`.

Answers are the API's JSON as dicts. Every method may raise the errors of :mod:`penstock.schemas.errors` that the API
answers with, and ServerUnreachable when it does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from penstock.client.bulk import BulkResult
from penstock.client.calls import Answer, Call, Calls, Json, Pause, error_of
from penstock.client.event_stream import EVENTS, events_params, read_events
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


class Client:
    """A blocking client. Use as a context manager, from one thread at a time.

    Args:
        server: the API's URL. If none is given that of ``PENSTOCK_SERVER``, else where ``penstock dev`` listens.
        patience_ms: how long to go on trying when the server does not answer or is not ready.
        transport: an httpx transport to send through, for tests.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        patience_ms: int = 10_000,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.server = checked(server)
        self._calls = Calls(self.server, patience_ms)
        if transport is None and (instead := stand_in()) is not None:
            transport = instead.blocking
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
            UniqueConflict: another job holds its unique key; ``details["existing_id"]`` is that job's id.
            IdempotencyKeyReused: its idempotency key was used for a different body.
            InvalidField: an option or value is not allowed.
        """
        return self._run(self._calls.enqueue(job_type, payload, options))

    def enqueue_many(self, requests: Iterable[Mapping[str, Any]]) -> BulkResult:
        """Put many jobs on the log, each a mapping with ``type``, ``payload`` and options; sent in chunks.

        One that is not allowed is rejected, as the result says, and stops no other.
        """
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
        """A new job with the payload and settings of this one, save for what is given. It runs at once.

        What is given as None is dropped: ``payload=None`` is no payload, ``batch=None`` no batch.
        """
        return self._run(self._calls.clone(job_id, changes))

    def get(self, job_id: str, at: datetime | str | None = None) -> Json:
        """A job, as it is or as it was. Raises JobNotFound.

        Args:
            at: a time, or a position of the log.
        """
        return self._run(self._calls.get(job_id, moment_text(at)))

    def history(self, job_id: str) -> list[Json]:
        """All that happened to a job, in log order. Raises JobNotFound."""
        return self._run(self._calls.history(job_id))

    def result(self, job_id: str, timeout_ms: int = 0) -> Any:
        """What the job returned. Raises Conflict where it has not succeeded.

        Args:
            timeout_ms: how long to wait for its end; then TimeoutError.
        """
        return self._run(self._calls.result(job_id, timeout_ms))

    def payload(self, job_id: str) -> Any:
        """The job's payload, wherever it lies."""
        return self._run(self._calls.payload(job_id))

    def log_page(
        self,
        job_id: str,
        attempt: int,
        *,
        first: int = 0,
        wait_ms: int = 0,
        contains: str = "",
        level: str = "",
    ) -> Json:
        """What an attempt has logged: ``items`` from line ``first`` on, ``next`` to go on with, ``ended`` if it has.

        Args:
            wait_ms: wait so long for a line, if there is none yet and the attempt goes on; at most 60 s.
            contains: only lines that contain this, whatever its case.
            level: only lines of this level and above.
        """
        return self._run(self._calls.log_page(job_id, attempt, first, wait_ms, contains, level))

    def sweep_claims(self, older_than_ms: int = 7 * 86_400_000, *, dry_run: bool = True) -> Json:
        """Find large bodies that belong to no job any more, and take them away unless ``dry_run``."""
        return self._run(self._calls.sweep_claims(older_than_ms, dry_run))

    def jobs(
        self, *, state: str = "", queue: str = "", type: str = "", batch: str = "", workflow: str = "",
        at: datetime | str | None = None,
    ) -> Iterator[Json]:  # fmt: skip
        """Jobs, newest first, read page by page; empty filters do not filter.

        Args:
            at: as they were at a time, or at a position of the log.
        """
        cursor = ""
        while True:
            page = self.jobs_page(
                cursor=cursor, state=state, queue=queue, type=type, batch=batch, workflow=workflow, at=at
            )
            yield from page["items"]
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    def search(
        self, filter: Mapping[str, Any] | None = None, *, sort: str = "",
        at: datetime | str | None = None, **more: Any,
    ) -> Iterator[Json]:  # fmt: skip
        """Jobs that match, read page by page, newest first unless ``sort`` says otherwise.

        Args:
            filter: fields as ``POST /jobs/search`` takes them; they may be given as keyword arguments as well.
            sort: a time such as ``created_at`` or ``finished_at``; with ``-`` in front the latest first.
            at: as :meth:`jobs` has it.
        """
        cursor = ""
        while True:
            page = self.search_page({**(filter or {}), **more}, sort=sort, cursor=cursor, at=at)
            yield from page["items"]
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    def search_page(
        self, filter: Mapping[str, Any] | None = None, *, sort: str = "", cursor: str = "", limit: int = 200,
        at: datetime | str | None = None,
    ) -> Json:  # fmt: skip
        """One page of a search: ``items``, ``next_cursor`` (null on the last), and ``total`` where it is known."""
        return self._run(self._calls.search_page(filter or {}, sort, cursor, limit, moment_text(at)))

    def operate(
        self, action: str, *, ids: Iterable[str] | None = None, filter: Mapping[str, Any] | None = None,
        args: Mapping[str, Any] | None = None, dry_run: bool = False,
    ) -> Json:  # fmt: skip
        """Begin to change many jobs; returns the operation, which goes on by itself.

        Args:
            action: retry, cancel, delete, move, hold, unhold, priority or requeue.
            ids: of the jobs; or else
            filter: as for :meth:`search`.
            args: what the single verb takes: ``{"priority": "high"}``, ``{"queue": "slow"}``.
            dry_run: only count what would be changed.
        """
        return self._run(self._calls.operate(action, ids, filter, args or {}, dry_run=dry_run))

    def operation(self, operation_id: str, timeout_ms: int = 0) -> Json:
        """An operation and how far it is.

        Args:
            timeout_ms: how long to wait for its end; then TimeoutError.
        """
        return self._run(self._calls.operation(operation_id, timeout_ms))

    def operation_items(self, operation_id: str) -> Iterator[Json]:
        """What became of each of its jobs, by job id."""
        cursor = ""
        while True:
            page = self._run(self._calls.operation_items(operation_id, cursor))
            yield from page["items"]
            cursor = page["next_cursor"] or ""
            if not cursor:
                return

    def cancel_operation(self, operation_id: str) -> Json:
        """The operation, told to stop; what it has changed stays."""
        return self._run(self._calls.cancel_operation(operation_id))

    def events(self, *, after: str = "", reconnect: bool = True, **filters: str) -> Iterator[Json]:
        """What happens to jobs, for as long as it is read: each event with its ``token``, which resumes behind it.

        Args:
            after: the token of an event, or a write's position token; from now on if empty.
            reconnect: whether to go on, without a gap, after the connection was cut.
            filters: as ``GET /events`` takes them: ``types``, ``job``, ``state``, ``queue``, ``type``, ...

        Raises:
            PositionGone: the log was trimmed beyond ``after``, or ends before it.
        """
        while True:
            call = Call("GET", EVENTS, events_params(after, filters))
            try:
                for event in read_events(self.stream_lines(call, STREAM_TIMEOUT)):
                    after = event["token"]
                    if "type" in event:
                        yield event
            except PenstockError as error:
                # The server is not there, or stops, or is not ready yet.
                if not reconnect or error.status != ServerUnreachable.status:
                    raise
            if not reconnect:
                return
            time.sleep(RECONNECT_S)

    def jobs_page(
        self, *, cursor: str = "", limit: int = 200, state: str = "", queue: str = "", type: str = "", batch: str = "",
        workflow: str = "", at: datetime | str | None = None,
    ) -> Json:  # fmt: skip
        """One page: ``items``, ``next_cursor`` (null on the last) and the exact ``total``, null with ``at``, and with a
        batch and a workflow at once."""
        filters = {"state": state, "queue": queue, "type": type, "batch": batch, "workflow": workflow}
        return self._run(self._calls.jobs_page(cursor, limit, at=moment_text(at), **filters))

    def wait(self, job_id: str, timeout_ms: int = 60_000) -> Json:
        """The job once it has ended. Raises TimeoutError, JobNotFound."""
        return self._run(self._calls.wait(job_id, timeout_ms))

    def counts(
        self, at: datetime | str | None = None, *, batch: str | None = None, workflow: str | None = None
    ) -> Any:
        """Exact numbers of jobs by state, queue, pool and type, of all or of a batch or workflow; ``at``: as they were,
        counted job by job."""
        return self._run(self._calls.counts(moment_text(at), batch, workflow))

    def queues(self) -> Any:
        return self._run(self._calls.resource("queues"))

    def workers(self) -> Any:
        return self._run(self._calls.resource("workers"))

    def drain_worker(self, worker: str) -> Json:
        """The worker, which takes no more jobs and finishes what it has."""
        return self._run(self._calls.tell_worker(worker, "drain"))

    def stop_worker(self, worker: str) -> Json:
        """The worker, which finishes or gives back what it has, and leaves."""
        return self._run(self._calls.tell_worker(worker, "stop"))

    def resource(self, name: str, **params: str) -> Any:
        """What ``GET /api/v1/<name>`` answers."""
        return self._run(self._calls.resource(name, **params))

    def sent(self, call: Call) -> Any:
        """What the server answers to any call, with the client's retries; its errors are raised."""
        return self._run(self._calls.ask(call))

    def stream_lines(self, call: Call, timeout: httpx.Timeout | None = None) -> Generator[bytes, None, None]:
        """Lines of a long answer as they come, without their newlines."""
        try:
            with self._http.stream(call.method, call.path, params=call.params, timeout=timeout) as response:
                if response.status_code >= 400:
                    response.read()
                    raise error_of(answer(response))
                rest = b""
                for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from lines
                if rest:
                    yield rest
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"{self.server} does not answer: {reason(error)}", server=self.server
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
            return answer(self._http.send(request(self._http, call)))
        except httpx.HTTPError as error:
            return Answer(0, {}, b"", reason(error))
