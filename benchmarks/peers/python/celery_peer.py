"""Celery on Redis. Its worker: `celery --app benchmarks.peers.python.celery_peer worker`."""

from __future__ import annotations

import os
from importlib.metadata import version

from celery import Celery, Task

from benchmarks import tally
from benchmarks.peers.python.producing import FAILING, Blocking, FailsOnce, arguments_of, main

app = Celery("bench", broker=os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0"))
app.conf.update(
    task_ignore_result=True,
    # After it ran: before, which is the default, a job is lost with its worker. No other system here loses it.
    task_acks_late=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_pool_limit=40,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="noop")
def noop() -> None:
    tally.count()


@app.task(name="payload")
def payload(text: str) -> None:
    tally.count()


@app.task(name="flaky", bind=True, autoretry_for=(FailsOnce,), default_retry_delay=0, retry_backoff=False)
def flaky(self: Task, number: int) -> None:
    tally.count()
    if number % FAILING == 0 and not self.request.retries:
        raise FailsOnce


@app.task(name="since")
def since(sent_ns: int) -> None:
    tally.since(sent_ns)


TASKS = {"noop": noop, "payload": payload, "flaky": flaky, "since": since}


def bulk(jobs: int, kind: str) -> None:
    """One after the other on one connection: Celery has no call for many tasks, its groups send them singly as well."""
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(jobs):
            TASKS[kind].apply_async(arguments_of(kind, number), producer=producer)


def send(kind: str, sent_ns: int) -> None:
    TASKS[kind].apply_async(arguments_of(kind, sent_ns=sent_ns))


if __name__ == "__main__":
    main(lambda: version("celery"), Blocking(bulk, send))
