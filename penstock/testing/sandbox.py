"""A sandbox: everything that a test needs to put jobs in, run them, let time pass, and look at what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self, cast

import msgspec

from penstock.client.calls import Json
from penstock.client.http import Client
from penstock.client.http_async import AsyncClient
from penstock.client.requests import plain
from penstock.client.sending import StandIn, put_in_place
from penstock.schemas import events as ev
from penstock.testing.instant import InstantLog
from penstock.testing.server import ADDRESS, InstantServer, run_to_its_end
from penstock.testing.working import Drainer, Ran, nothing_planned
from penstock.workers.app import AnyTask, App
from penstock.workers.dependencies import Overrides

MOST_JOBS = 1_000


class _Anything(str):
    """Equals whatever it is compared with. A text, so that models take it as one and bring it through to JSON."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING: Any = _Anything("\0anything")
"""In a payload that is looked for, however deep: whatever stands there."""
_AS_JSON = str(ANYTHING)
"""What is left of it in plain values; no payload has a text like it."""


class HandlerFailed(AssertionError):
    """A job did not succeed, and the test had not said that it may."""


class Sandbox:
    """Use as a context manager. Inside, every client that is made speaks to it: the code under test needs no changes.

    Args:
        tasks: what runs the jobs: an App, or tasks. Jobs of other types wait.
        inline: run each job at once when it is put in, before whoever put it in goes on.
        now: the time that stands still; the moment that it is made if not given.
        overrides: providers of the tasks' dependencies, and what is used in their stead.
        raises: whether a job that ends without success, or whose attempt fails, raises HandlerFailed from where it was
            run. ``dead`` does so only for those that end.
    """

    def __init__(
        self,
        tasks: App | Iterable[AnyTask] = (),
        *,
        inline: bool = False,
        now: datetime | None = None,
        overrides: Overrides | None = None,
        raises: Literal["never", "dead", "always"] = "never",
    ) -> None:
        self.tasks = tasks if isinstance(tasks, App) else App(*tasks)
        self.inline = inline
        self._overrides = overrides
        self._raises = raises
        self._log = InstantLog(time.time_ns() // 1_000_000 if now is None else round(now.timestamp() * 1_000))
        self._server = InstantServer(self._log, self._after_a_write)
        self._planned = nothing_planned()
        self._draining = False
        self._before: StandIn | None = None
        self.client = Client(ADDRESS, transport=self._server.blocking)
        """Speaks to this sandbox, whatever stands in the place of the server."""

    def __enter__(self) -> Self:
        self._before = put_in_place(self._server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        put_in_place(self._before)
        self.client.close()

    def async_client(self) -> AsyncClient:
        """A client that awaits; use as an async context manager."""
        return AsyncClient(ADDRESS, transport=self._server.asynchronous)

    # Time

    @property
    def now(self) -> datetime:
        """The time that it is in here."""
        return datetime.fromtimestamp(self._log.now_ms / 1_000, UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass: jobs become due, and those that were not started in time expire. None is run."""
        self._log.pass_to(self._log.now_ms + round(seconds * 1_000))

    # Running

    def drain(self, *, type: str = "", most: int = MOST_JOBS, skip_time: bool = False) -> int:
        """Run the jobs that are ready, and those that come of them, one after the other; how many attempts were made.

        Args:
            type: only jobs of this type.
            most: then it is an AssertionError: a job that puts itself in again never ends.
            skip_time: where nothing is ready, let time pass until something is: retries and delayed jobs too.

        In a test that is a coroutine, await :meth:`adrain`: then handlers run in its own event loop.
        """
        return run_to_its_end(self.adrain(type=type, most=most, skip_time=skip_time))

    async def adrain(self, *, type: str = "", most: int = MOST_JOBS, skip_time: bool = False) -> int:
        """As :meth:`drain`, in the running event loop."""
        ran = 0
        drainer = Drainer(self._log, self.tasks, self._planned, self._overrides)
        self._draining = True
        try:
            while True:
                if len(self.tasks):
                    ran += await drainer.drain(
                        most - ran, lambda job: type in ("", job.job_type), self._judge
                    )
                next_ms = self._log.next_time_ms()
                if ran >= most and (next_ms is not None or any(True for _ in self._ready())):
                    raise AssertionError(
                        f"{ran} jobs were run, and there are more: does one put itself in again?"
                    )
                if not skip_time or next_ms is None:
                    return ran
                self._log.pass_to(next_ms)
        finally:
            self._draining = False

    async def _after_a_write(self) -> None:
        # What a handler puts in is run by whoever runs the handler.
        if self.inline and not self._draining:
            await self.adrain()

    def _ready(self) -> Iterable[Any]:
        return self._log.ready(self.tasks.tasks.keys())

    def _judge(self, ran: Ran) -> None:
        if self._raises == "never" or isinstance(ran.outcome, ev.Succeeded | None):
            return
        job = self.job(ran.job)
        if job["state"] == "dead" or (self._raises == "always" and isinstance(ran.outcome, ev.Failed)):
            told = "; ".join(f"{error['code']}: {error['message']}" for error in job["errors"][-1:])
            raise HandlerFailed(f"{job['type']} {job['id']} is {job['state']}: {told}")

    # What goes wrong

    def fail_next(
        self, type: str, code: str = "failed_on_purpose", message: str = "", *, times: int = 1, retryable: bool = True
    ) -> None:  # fmt: skip
        """The next attempts of jobs of this type fail, without their handler being called."""
        error = ev.JobError(code, message or "as the test wants it", retryable=retryable)
        self._planned.failures[type] += [error] * times

    def crash_next(self, type: str, *, times: int = 1) -> None:
        """The next jobs of this type lose their worker when their handler has returned, before anybody is told.

        So it is called again: what a handler does must stand being done twice.
        """
        self._planned.crashes[type] += times

    # Looking

    def job(self, job_id: str) -> Json:
        """A job. Raises JobNotFound."""
        return self.client.get(job_id)

    def history(self, job_id: str) -> list[Json]:
        """Everything that happened to a job."""
        return self.client.history(job_id)

    def jobs(self, type: str = "", **filter: Any) -> list[Json]:
        """Jobs in the order in which they were put in; ``filter`` as of a search."""
        given = {**filter, **({"type": type} if type else {})}
        return list(self.client.search(given, sort="created_at"))

    def assert_enqueued(
        self, type: str, payload: Any = ANYTHING, *, count: int | None = None, **fields: Any
    ) -> list[Json]:
        """Jobs of this type were put in, with this payload and these fields (``queue="mail"``, ``tags=["a"]``).

        Args:
            payload: what the handler would get, or a part of it where it is a mapping. As arguments are, it may hold
                dataclasses and models.
            count: exactly so many; at least one if not given.

        Returns:
            the jobs.
        """
        wanted = _with_anything(msgspec.to_builtins(payload, str_keys=True, enc_hook=_plain))
        jobs = self.jobs(type)
        found = [
            job
            for job in jobs
            if _has(job["payload"], wanted) and all(job.get(name) == value for name, value in fields.items())
        ]
        if len(found) == count or (count is None and found):
            return found
        asked = f"{type} with {wanted!r}" + "".join(f", {name}={value!r}" for name, value in fields.items())
        there = [f"  {job['type']} {job['payload']!r}" for job in (jobs or self.jobs())] or ["  none"]
        expected = "a job" if count is None else f"{count} jobs"
        raise AssertionError(
            f"expected {expected} {asked}; found {len(found)}. There are:\n" + "\n".join(there)
        )

    def assert_not_enqueued(self, type: str, payload: Any = ANYTHING, **fields: Any) -> None:
        """No such job was put in."""
        self.assert_enqueued(type, payload, count=0, **fields)


def _plain(value: Any) -> Any:
    return _AS_JSON if value is ANYTHING else plain(value)


def _with_anything(value: Any) -> Any:
    """Plain values, with ANYTHING where it was."""
    if isinstance(value, dict):
        return {name: _with_anything(one) for name, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_with_anything(one) for one in cast("list[Any]", value)]
    return ANYTHING if isinstance(value, str) and value == _AS_JSON else value


def _has(found: Any, wanted: Any) -> bool:
    """Whether a payload is as wanted, which may leave fields of mappings out."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        there, asked = cast("Mapping[str, Any]", found), cast("Mapping[str, Any]", wanted)
        return all(name in there and _has(there[name], value) for name, value in asked.items())
    return bool(wanted == found)
