"""A child process of a worker: ``python -m penstock.workers.child`` runs one job after another in a process that can
be killed.

It is a worker of its own, with one slot, whose transport is the pipe to its parent: the parent holds the leases, writes
what is told, and kills this process when a handler does not stop. When the pipe ends, so does the process, at once.
What handlers print goes to the parent's stderr.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec
from msgspec import Raw

from penstock.schemas.codec import encode_line
from penstock.schemas.errors import LeaseLost, PenstockError
from penstock.schemas.events import NULL, Progressed, Succeeded
from penstock.schemas.limits import CLAIM_ABOVE_BYTES
from penstock.workers.bodies import PassedOn
from penstock.workers.errors import AppInvalid
from penstock.workers.lease import HeldLease
from penstock.workers.loading import load_apps
from penstock.workers.log_fields import own_fields
from penstock.workers.pipes import (
    Begin,
    Ended,
    FromChild,
    Kept,
    Logged,
    Ready,
    Refused,
    Setup,
    Stop,
    ToChild,
    Told,
    decode_to_child,
    encode,
)
from penstock.workers.runtime import Worker
from penstock.workers.transport import OutcomeEvent, Recipient, WorkerProfile


class Outbox:
    """Lines to the parent, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, message: FromChild) -> None:
        line = encode(message) + b"\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError:
                os._exit(0)


class PipeTransport:
    """See :class:`penstock.workers.transport.Transport`: one lease at a time, from the parent."""

    def __init__(self, outbox: Outbox) -> None:
        self.bodies = PassedOn()
        self._outbox = outbox
        self._recipient: Recipient | None = None
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self.held: HeldLease | None = None
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, profile: WorkerProfile, recipient: Recipient) -> None:
        self._recipient = recipient

    def begin(self, begun: Begin) -> None:
        assert self._recipient is not None
        self.held = HeldLease(begun.delivery, time.monotonic() * 1_000)
        self._recipient.receive([self.held])

    def kept(self, kept: Kept) -> None:
        waiting = self._waiting.pop(kept.number, None)
        if waiting is None or waiting.done():
            return
        if kept.error:
            waiting.set_exception(LeaseLost(kept.error))
        else:
            waiting.set_result(None)

    def resize(self, capacity: int, busy: int) -> None:
        """There is one job at a time."""

    def limit(self, limits: Mapping[str, int]) -> None:
        """There is one job at a time."""

    def demand(self) -> frozenset[str]:
        return frozenset()

    def waiting(self) -> int:
        return 0

    def finish(self, lease: HeldLease, event: OutcomeEvent) -> None:
        if lease is self.held and not lease.line:
            result = NULL
            if isinstance(event, Succeeded) and len(event.result) > CLAIM_ABOVE_BYTES:
                # Larger than a line may be, perhaps: it travels by itself.
                result, event = event.result, msgspec.structs.replace(event, result=NULL)
            lease.line = encode_line(event)
            self._outbox.send(Ended(Raw(lease.line), result))

    async def progress(self, lease: HeldLease, event: Progressed) -> None:
        self._number += 1
        waiting = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        self._outbox.send(
            Told(
                number=self._number,
                percent=event.percent,
                message=event.message,
                saves=event.checkpoint is not None,
                checkpoint=event.checkpoint or NULL,
            )
        )
        await waiting

    def stop_taking(self) -> None:
        """The parent decides what comes."""

    async def flush(self, timeout_ms: int) -> int:
        return 0

    async def close(self) -> None:
        self.failure.cancel()


class ToParent(logging.Handler):
    """Log records, for the parent to log."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            extra = {
                name: value if isinstance(value, str | int | float | bool | None) else str(value)
                for name, value in own_fields(record).items()
            }
            text = self.format(record)
            self._outbox.send(Logged(logger=record.name, level=record.levelno, text=text, extra=extra))
        except Exception:  # noqa: BLE001 - as all handlers do: a bad record must not end the job
            self.handleError(record)


async def serve(inbox: BinaryIO, outbox: Outbox, setup: Setup) -> None:
    """Run what comes until the pipe ends, which ends the process."""
    loop = asyncio.get_running_loop()
    transport = PipeTransport(outbox)
    app = load_apps(setup.apps)
    if missing := setup.types - app.tasks.keys():
        where = ", ".join(setup.apps)
        raise AppInvalid(
            f"{where} has no task for {', '.join(sorted(missing))}: "
            "one with process=True stands in a module of its own name"
        )
    app = app.only(setup.types)
    async with Worker(app, transport, concurrency=1, name="child", processes=False) as worker:
        messages: asyncio.Queue[ToChild] = asyncio.Queue()

        def read() -> None:
            for line in inbox:
                loop.call_soon_threadsafe(messages.put_nowait, decode_to_child.decode(line))
            os._exit(0)

        threading.Thread(target=read, name="penstock-inbox", daemon=True).start()
        outbox.send(Ready())
        while True:
            match await messages.get():
                case Begin() as begun:
                    transport.begin(begun)
                case Kept() as kept:
                    transport.kept(kept)
                case Stop(lease, reason, detail):
                    held = transport.held
                    if held is not None and held.id == lease:
                        worker.executor.stop(held, reason, detail)
                case Setup():
                    raise AssertionError("a second set-up")


def main() -> None:
    """Be a child: standard streams become pipes to the parent, and handlers get others."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), Outbox(os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    setup: Any = decode_to_child.decode(inbox.readline())
    sys.path[:] = setup.path
    logging.basicConfig(level=setup.level, handlers=[ToParent(outbox)])
    try:
        asyncio.run(serve(inbox, outbox, setup))
    except PenstockError as error:
        outbox.send(Refused(error.message))


if __name__ == "__main__":
    main()
