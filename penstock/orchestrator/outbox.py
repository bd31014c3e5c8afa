"""Carries out what the machine decided: appends lines, sends deliveries, signals and beats.

Lines of the jobs topic go through the bundler, which retries. Hints are sent once: one record in flight for
each destination, what comes meanwhile forms the next; when a send fails they are dropped, for the protocol
sends again what matters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from penstock.log.bundler import Bundler
from penstock.log.port import Log
from penstock.orchestrator.outputs import Forward, Outputs, QuarantineNote
from penstock.schemas.errors import LogError
from penstock.schemas.limits import MAX_BUNDLE_BYTES
from penstock.schemas.messages import encode_messages
from penstock.schemas.position import unpack
from penstock.schemas.topics import BROADCAST, Topics

_log = logging.getLogger("penstock.orchestrator")

_Destination = tuple[str, int, str]


class QuarantineLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of the quarantine topic. ``head`` is the first 4 KiB of the refused bytes (base64 on the wire)."""

    position: str
    at: int
    reason: str
    size_bytes: int
    sha256: str
    head: bytes


class Outbox:
    """Sends one orchestrator's outputs. ``forwarded`` is told of each forward that the log has acknowledged."""

    def __init__(
        self, log: Log, topics: Topics, bundler: Bundler, forwarded: Callable[[Forward], None]
    ) -> None:
        self._log = log
        self._topics = topics
        self._bundler = bundler
        self._forwarded = forwarded
        self._pending: dict[_Destination, list[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def carry_out(self, out: Outputs) -> None:
        """Start everything; nothing is waited for."""
        for partition, lines in out.lines.items():
            if lines:
                self._spawn(self._append(partition, lines))
        for (priority, route, worker), deliveries in out.deliveries.items():
            self._send(self._topics.work(priority), route, worker, deliveries)
        for route, signals in out.signals.items():
            self._send(self._topics.signals, route, "", signals)
        if out.beats:
            self._send(self._topics.signals, BROADCAST, "", out.beats)
        if out.echo is not None:
            for partition in range(self._topics.worker_partitions):
                self._send(self._topics.workers, partition, "", [out.echo])
        for forward in out.forwards:
            self._spawn(self._forward(forward))
        if out.quarantine:
            self._spawn(self._quarantine(out.quarantine))
        for notice in out.notices:
            _log.info(notice)

    async def drain(self, timeout_ms: int = 5_000) -> None:
        """Wait for what is under way, at most so long; cancel the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_ms / 1_000)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _append(self, partition: int, lines: list[bytes]) -> None:
        """A line that is lost here is written again by the machine, which sees that it never came back."""
        try:
            await self._bundler.append_many(partition, lines)
        except LogError as error:
            _log.warning("%d lines for partition %d were not written: %s", len(lines), partition, error)

    async def _forward(self, forward: Forward) -> None:
        while True:
            try:
                await self._bundler.append_many(forward.target, forward.lines)
            except LogError as error:
                _log.warning("forwarding to partition %d failed, trying again: %s", forward.target, error)
                await asyncio.sleep(1.0)
            else:
                self._forwarded(forward)
                return

    async def _quarantine(self, notes: list[QuarantineNote]) -> None:
        lines = [
            QuarantineLine(
                str(unpack(note.partition, note.position)),
                note.time_ms,
                note.reason,
                note.size_bytes,
                note.sha256.hex(),
                note.head,
            )
            for note in notes
        ]
        for start in range(0, len(lines), 100):
            await self._note(encode_messages(lines[start : start + 100]))

    async def _note(self, value: bytes) -> None:
        """Append until it is written: a note that is lost comes back only when another takes over."""
        while True:
            try:
                await self._log.append(self._topics.quarantine, 0, value)
            except LogError as error:
                _log.warning(
                    "refused lines could not be noted on the quarantine topic, trying again: %s", error
                )
                await asyncio.sleep(1.0)
            else:
                return

    # Hints

    def _send(self, topic: str, partition: int, key: str, messages: list[Any]) -> None:
        destination = (topic, partition, key)
        pending = self._pending.get(destination)
        if pending is not None:
            pending.extend(messages)
            return
        self._pending[destination] = []
        self._spawn(self._send_all(destination, messages))

    async def _send_all(self, destination: _Destination, messages: list[Any]) -> None:
        topic, partition, key = destination
        try:
            while messages:
                for value in _records(messages):
                    try:
                        await self._log.append(topic, partition, value, key=key.encode() if key else None)
                    except LogError as error:
                        _log.debug("hints for %s/%d were lost: %s", topic, partition, error)
                messages = self._pending[destination]
                self._pending[destination] = []
        finally:
            self._pending.pop(destination, None)


def _records(messages: list[Any]) -> list[bytes]:
    """Messages as record values that stay below the size of a record."""
    if len(messages) == 1:
        return [encode_messages(messages)]
    value = encode_messages(messages)
    if len(value) <= MAX_BUNDLE_BYTES:
        return [value]
    half = len(messages) // 2
    return _records(messages[:half]) + _records(messages[half:])
