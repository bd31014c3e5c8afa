"""Heartbeats of many sessions on one partition of the workers topic: those that are due go out in one record.

One loop, no timers of its own for each session. While the log does not answer, nothing else waits for it: each
partition has its own pulse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from penstock.log.port import Log
from penstock.schemas.errors import LogError
from penstock.schemas.messages import Heartbeat
from penstock.schemas.topics import Topics
from penstock.workers.session import Session

MAX_RECORD_BYTES = 800_000

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Pulse:
    """The heartbeats that go to one partition."""

    def __init__(self, log: Log, topics: Topics, partition: int, now_ms: Callable[[], float]) -> None:
        self._log = log
        self._topic = topics.workers
        self._partition = partition
        self._now_ms = now_ms
        self._sessions: list[Session] = []
        self._woken = asyncio.Event()

    def add(self, session: Session) -> None:
        self._sessions.append(session)
        self.wake()

    def remove(self, session: Session) -> None:
        if session in self._sessions:
            self._sessions.remove(session)

    def wake(self) -> None:
        """Some session's next heartbeat may be due earlier than it was."""
        self._woken.set()

    async def run(self) -> None:
        """Send what is due, for ever."""
        while True:
            self._woken.clear()
            now_ms = self._now_ms()
            due = [session for session in self._sessions if session.due_ms() <= now_ms]
            if due:
                try:
                    await self.send(due)
                except LogError as error:
                    _log.warning("heartbeats are not written: %s", error.message)
                    await asyncio.sleep(0.1)
                continue
            await self._rest(now_ms)

    async def _rest(self, now_ms: float) -> None:
        next_ms = min((session.due_ms() for session in self._sessions), default=now_ms + 60_000)
        # Rounded up: woken a hair too early, the loop would spin until the time has come.
        pause_ms = max(next_ms - now_ms, 0) + 1
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._woken.wait()
        except TimeoutError:
            return
        # Woken for a change: whatever else changes in this round of the loop shall go along.
        await asyncio.sleep(0)

    async def send(self, sessions: Sequence[Session]) -> None:
        """Write one heartbeat of each session, in as few records as may be.

        Raises:
            LogError: not certainly written.
        """
        lines: list[bytes] = []
        senders: list[tuple[Session, Heartbeat]] = []
        size = 0
        sent_ms = self._now_ms()
        for session in sessions:
            beat = session.heartbeat()
            line = _encode(beat)
            if lines and size + len(line) > MAX_RECORD_BYTES:
                await self._write(lines, senders, sent_ms)
                lines, senders, size = [], [], 0
            lines.append(line)
            senders.append((session, beat))
            size += len(line) + 1
        await self._write(lines, senders, sent_ms)

    async def _write(
        self, lines: list[bytes], senders: list[tuple[Session, Heartbeat]], sent_ms: float
    ) -> None:
        await self._log.append(self._topic, self._partition, b"\n".join(lines))
        for session, beat in senders:
            session.heard(beat, sent_ms)
