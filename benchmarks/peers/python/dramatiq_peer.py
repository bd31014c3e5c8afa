"""Dramatiq on Redis. Its worker: `dramatiq benchmarks.peers.python.dramatiq_peer --processes 1 --threads N`."""

from __future__ import annotations

import os
from importlib.metadata import version

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage

from benchmarks import tally
from benchmarks.peers.python.producing import FAILING, Blocking, FailsOnce, arguments_of, main

broker = RedisBroker(url=os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0"))
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    tally.count()


@dramatiq.actor
def payload(text: str) -> None:
    tally.count()


# The shortest backoff there is: others retry as soon as they can, too.
@dramatiq.actor(min_backoff=1, max_backoff=1)
def flaky(number: int) -> None:
    tally.count()
    message = CurrentMessage.get_current_message()
    if number % FAILING == 0 and not message.options.get("retries"):
        raise FailsOnce


@dramatiq.actor
def since(sent_ns: int) -> None:
    tally.since(sent_ns)


ACTORS = {"noop": noop, "payload": payload, "flaky": flaky, "since": since}


def bulk(jobs: int, kind: str) -> None:
    """One after the other: Dramatiq has no call for many messages, its groups send them singly as well."""
    actor = ACTORS[kind]
    for number in range(jobs):
        actor.send(*arguments_of(kind, number))


def send(kind: str, sent_ns: int) -> None:
    ACTORS[kind].send(*arguments_of(kind, sent_ns=sent_ns))


if __name__ == "__main__":
    main(lambda: version("dramatiq"), Blocking(bulk, send))
