"""Producers that keep coming, each with a ledger of what it was told.

A job is *acknowledged* when somebody said so, and *unknown* when the last word about it was no word at all. Insistent
producers repeat under the same id until they are told, as the documentation asks of clients; one that gives up leaves
its unknowns in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.client.producer import LogProducer
from penstock.log.kafka import KafkaLog
from penstock.log.namespace import open_namespace
from penstock.schemas.errors import LogError
from penstock.schemas.topics import Topics
from tests.acceptance.processes import http

Request = dict[str, Any]

PATIENT_ATTEMPTS = 50
"""Of a job that waits out a fault: leases that expire count, and none of these is to die of that."""
DOOMED_ATTEMPTS = 2
REPEAT_S = 0.25
REQUEST_S = 12.0


def request_of(job_id: str, number: int) -> Request:
    """The job of this number: most are quick, some run, some fail, some wait."""
    job: Request = {"id": job_id, "type": "add", "payload": {"a": number, "b": 1}}
    job["max_attempts"] = PATIENT_ATTEMPTS
    job["backoff"] = {"kind": "fixed", "base_ms": 200}
    match number % 20:
        case 0:
            job |= {"type": "nap", "payload": {"seconds": 1.5}}
        case 4:
            job |= {"type": "nap", "payload": {"seconds": 0.2}, "priority": "high"}
        case 7 if number % 40 == 7:
            job |= {"type": "doomed", "payload": {}, "max_attempts": DOOMED_ATTEMPTS}
        case 7:
            job |= {"type": "blocking", "payload": {"seconds": 0.5}}
        case 10:
            job |= {"type": "flaky", "payload": {}}
        case 13:
            job |= {"delay_ms": 2_000}
        case 15:
            job |= {"type": "steps", "payload": {}}
        case _:
            pass
    return job


def expected_end(request: Request) -> str:
    """The state that the job must come to."""
    return "dead" if request["type"] == "doomed" else "succeeded"


class Ledger:
    """What one producer was told. Written by its thread, read when that has ended."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, Request] = {}
        self.acknowledged_s: dict[str, float] = {}
        """When, by the machine's monotonic clock."""
        self.unknown: dict[str, Request] = {}
        self.repeats = 0


class Producer(threading.Thread):
    """A thread that enqueues ``rate`` jobs a second until told to stop, then finishes what is still open."""

    def __init__(self, name: str, rate: float, *, at_once: int = 1, insistent: bool = True) -> None:
        super().__init__(name=f"producer-{name}", daemon=True)
        self.label = name
        self.ledger = Ledger()
        self._pause_s = at_once / rate
        self._at_once = at_once
        self._insistent = insistent
        self._stopping = threading.Event()
        self._give_up = threading.Event()

    def stop(self) -> None:
        """Begin no more."""
        self._stopping.set()

    def end(self, patience_s: float) -> None:
        """Wait until what is open is acknowledged; what is not by then is unknown."""
        if self.ident is None:
            return
        self.join(patience_s)
        self._give_up.set()
        self.join(2 * REQUEST_S)
        assert not self.is_alive(), f"{self.name} hangs"

    def run(self) -> None:
        numbers = itertools.count()
        while not self._stopping.is_set():
            jobs = [request_of(f"{self.label}-{n}", n) for n in itertools.islice(numbers, self._at_once)]
            self._enqueue(jobs)
            self._stopping.wait(self._pause_s)

    def _enqueue(self, jobs: list[Request]) -> None:
        for job in jobs:
            self.ledger.unknown[job["id"]] = job
        for attempt in itertools.count():
            told = self._send(jobs, attempt)
            for job_id in told:
                self.ledger.acknowledged[job_id] = self.ledger.unknown.pop(job_id)
                self.ledger.acknowledged_s[job_id] = time.monotonic()
            jobs = [job for job in jobs if job["id"] not in told]
            if not jobs or not self._insistent or self._give_up.is_set():
                return
            self.ledger.repeats += 1
            time.sleep(REPEAT_S)

    def _send(self, jobs: Sequence[Request], attempt: int) -> set[str]:
        """Ids that were acknowledged."""
        raise NotImplementedError


class RestProducer(Producer):
    """Asks the servers in turn: when one does not answer, the next is asked for the same job."""

    def __init__(self, name: str, servers: Sequence[str], rate: float, **options: Any) -> None:
        super().__init__(name, rate, **options)
        self._servers = servers

    def _send(self, jobs: Sequence[Request], attempt: int) -> set[str]:
        server = self._servers[attempt % len(self._servers)]
        with contextlib.suppress(OSError):
            if self._at_once == 1:
                answer = http("POST", f"{server}/api/v1/jobs", jobs[0], timeout_s=REQUEST_S)
                return {jobs[0]["id"]} if answer.status in (200, 201) else set()
            answer = http("POST", f"{server}/api/v1/jobs/bulk", list(jobs), timeout_s=REQUEST_S)
            if answer.status < 300:
                return _accepted(jobs, answer.json["items"])
        return set()


def _accepted(jobs: Sequence[Request], items: Sequence[Mapping[str, Any]]) -> set[str]:
    """Of a bulk answer: items stand in the order of the request, and say each for itself what became of it."""
    assert len(items) == len(jobs), json.dumps(items)[:500]
    return {job["id"] for job, item in zip(jobs, items, strict=True) if item["status"] == "accepted"}


class LogProducerThread(Producer):
    """Writes straight to the log, with the client library and no API between."""

    def __init__(self, name: str, bootstrap: str, topics: Topics, rate: float, **options: Any) -> None:
        super().__init__(name, rate, **options)
        self._brokers = bootstrap
        self._topics = topics
        self._ask: Callable[[Sequence[Request]], set[str]] | None = None

    def run(self) -> None:
        with asyncio.Runner() as runner:
            while not self._give_up.is_set():
                try:
                    runner.run(self._connected(runner))
                    return
                except LogError:
                    time.sleep(REPEAT_S)

    async def _connected(self, runner: asyncio.Runner) -> None:
        async with KafkaLog(self._brokers) as log:
            await open_namespace(log, self._topics)
            async with LogProducer(log, self._topics) as producer:
                loop = runner.get_loop()

                def ask(jobs: Sequence[Request]) -> set[str]:
                    return asyncio.run_coroutine_threadsafe(_produce(producer, jobs), loop).result()

                self._ask = ask
                await asyncio.to_thread(super().run)

    def _send(self, jobs: Sequence[Request], attempt: int) -> set[str]:
        assert self._ask is not None
        return self._ask(jobs)


async def _produce(producer: LogProducer, jobs: Sequence[Request]) -> set[str]:
    try:
        return {produced.id for produced in await producer.enqueue_many(jobs)}
    except LogError:
        return set()
