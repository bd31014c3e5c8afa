"""What handlers log, kept for each attempt.

Whatever is logged while a handler runs (through its context, by its own loggers, in threads and in child processes; a
program's stderr) belongs to its attempt: a context variable says to which. Lines are gathered and stored every second,
and once more when the attempt has ended; nothing waits for that, neither the handler nor its outcome. So what a worker
had not stored when it died is lost, and a handler that logs nothing costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any, Self

import msgspec

from penstock.schemas.errors import ClaimsOff, PenstockError
from penstock.schemas.limits import MAX_OUTPUT_BYTES, MAX_OUTPUT_MESSAGE_CHARS
from penstock.schemas.times import time_text
from penstock.workers.bodies import Bodies
from penstock.workers.context import job_fields
from penstock.workers.lease import HeldLease
from penstock.workers.log_fields import own_fields

EVERY_S = 1.0
SOON_S = 0.05
"""After an attempt has ended: others that end meanwhile go along."""

LAST_S = 5.0
"""How long closing waits for what is not stored yet."""

MOST_ATTEMPTS = 10_000
"""With output that is not stored yet; of more it is dropped."""

AT_ONCE = 8

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_formatter = logging.Formatter()


class Output:
    """One attempt's lines. Written to from any thread, under the lock of the keeper's handler."""

    __slots__ = ("dropped", "ended", "keeper", "lease", "lines", "number", "size_bytes", "waiting")

    def __init__(self, keeper: OutputKeeper, lease: HeldLease) -> None:
        self.keeper = keeper
        self.lease = lease
        self.lines: list[bytes] = []
        self.waiting: list[tuple[int, bytes]] = []
        """Parts that are to be stored, by number."""
        self.number = 0
        self.size_bytes = 0
        self.dropped = 0
        self.ended = False


_current: ContextVar[Output] = ContextVar("penstock-output")


class OutputKeeper(logging.Handler):
    """Gathers what handlers of one worker log, and stores it. An async context manager; it hears the root logger.

    Args:
        level: what is below it is not kept.
    """

    def __init__(self, bodies: Bodies, level: int, wall_ms: Callable[[], int]) -> None:
        super().__init__(level)
        self._bodies = bodies
        self._wall_ms = wall_ms
        self._open: dict[Output, None] = {}
        self._ended = asyncio.Event()
        self._storing: asyncio.Task[None] | None = None
        self._off = False

    # Around a handler

    def begin(self, lease: HeldLease) -> Token[Output]:
        """From here on what is logged in this context is the attempt's."""
        return _current.set(Output(self, lease))

    def end(self, token: Token[Output]) -> None:
        """The attempt has ended."""
        output = _current.get()
        _current.reset(token)
        output.ended = True
        if output in self._open:
            self._ended.set()

    def emit(self, record: logging.LogRecord) -> None:
        output = _current.get(None)
        own = record.name.startswith("penstock.") and record.name != "penstock.job"
        if output is None or output.keeper is not self or output.ended or own or self._off:
            return
        try:
            line = self._line(record, output)
        except Exception:  # noqa: BLE001 - as all handlers do: a bad record must not end the job
            self.handleError(record)
            return
        if output.size_bytes + len(line) > MAX_OUTPUT_BYTES:
            output.dropped += 1
            return
        if not output.lines and output not in self._open:
            if len(self._open) >= MOST_ATTEMPTS:
                return
            self._open[output] = None
        output.size_bytes += len(line) + 1
        output.lines.append(line)

    def _line(self, record: logging.LogRecord, output: Output) -> bytes:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + _formatter.formatException(record.exc_info)
        known = job_fields(output.lease.delivery)
        fields = {name: value for name, value in own_fields(record).items() if name not in known}
        return _encode(
            {
                "at": time_text(int(record.created * 1_000)),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message[:MAX_OUTPUT_MESSAGE_CHARS],
                **({"fields": {name: _plain(value) for name, value in fields.items()}} if fields else {}),
            }
        )

    # Storing

    async def __aenter__(self) -> Self:
        if self._bodies.keeps_output:
            logging.getLogger().addHandler(self)
            self._storing = asyncio.create_task(self._store_on(), name="worker-output")
        return self

    async def __aexit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        if self._storing is None:
            return
        self._storing.cancel()
        with suppress(asyncio.CancelledError):
            await self._storing
        try:
            async with asyncio.timeout(LAST_S):
                await self._store()
        except TimeoutError:
            pass
        if self._open:
            _log.warning("the output of %d attempts is not stored", len(self._open))

    async def _store_on(self) -> None:
        while not self._off:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._ended.wait()
                    await asyncio.sleep(SOON_S)
            self._ended.clear()
            await self._store()

    async def _store(self) -> None:
        """Store all there is, oldest first; what cannot be is tried again the next time."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def store(output: Output) -> None:
            async with slots:
                await self._store_one(output)

        self._gather()
        await asyncio.gather(*map(store, list(self._open)))

    def _gather(self) -> None:
        """Lines since the last time become a part."""
        self.acquire()
        try:
            for output in self._open:
                if output.ended and output.dropped:
                    output.lines.append(self._lacking(output))
                    output.dropped = 0
                if output.lines:
                    output.waiting.append((output.number, b"\n".join(output.lines) + b"\n"))
                    output.number += 1
                    output.lines = []
        finally:
            self.release()

    def _lacking(self, output: Output) -> bytes:
        return _encode(
            {
                "at": time_text(self._wall_ms()),
                "level": "warning",
                "logger": __name__,
                "message": f"{output.dropped} more records: an attempt's output is kept up to {MAX_OUTPUT_BYTES} bytes",
            }
        )

    async def _store_one(self, output: Output) -> None:
        try:
            while output.waiting:
                number, lines = output.waiting[0]
                await self._bodies.output(output.lease.delivery, number, lines)
                del output.waiting[0]
        except ClaimsOff:
            # Nobody keeps it: there is nothing to be had from trying on.
            self._off = True
            self._open.clear()
            return
        except PenstockError as error:
            _log.warning(
                "the output of job %s is not stored yet: %s", output.lease.delivery.job, error.message
            )
            return
        if output.ended and not output.lines and not output.dropped:
            self._open.pop(output, None)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
