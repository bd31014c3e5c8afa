"""Who is alive on a log, by what they broadcast: orchestrators beat, projections announce, workers heartbeat."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

from msgspec import Struct

from penstock.log.port import Log, Record, Tail
from penstock.schemas.errors import OffsetBeyondEnd, OffsetTrimmed
from penstock.schemas.messages import Beat, Heartbeat, Serving, decode_reports, decode_signals
from penstock.schemas.topics import BROADCAST, Topics

_Word = TypeVar("_Word")

LISTEN_MS = 3_000
"""Long enough to hear everybody: the slowest speaks every second or two."""


class Heard(Struct):
    """The newest word of each process, by incarnation; not of those that said that they leave."""

    orchestrators: dict[str, Beat] = {}
    projections: dict[str, Serving] = {}
    workers: dict[str, Heartbeat] = {}

    def take(self, record: Record, topics: Topics) -> None:
        """Take what a record of the signals or the workers topic says."""
        if record.topic == topics.workers:
            for report in decode_reports(record.value):
                if isinstance(report, Heartbeat):
                    _note(self.workers, report.incarnation or report.worker, report, report.leaving)
            return
        for signal in decode_signals(record.value):
            if isinstance(signal, Beat):
                _note(self.orchestrators, signal.incarnation, signal, signal.leaving)
            elif isinstance(signal, Serving):
                _note(self.projections, signal.incarnation, signal, signal.leaving)

    def names(self) -> list[str]:
        """Everybody that was heard, for people."""
        return [
            *(f"orchestrator {beat.orchestrator}" for beat in self.orchestrators.values()),
            *(f"projection {serving.projection}" for serving in self.projections.values()),
            *(f"worker {beat.worker}" for beat in self.workers.values()),
        ]


def _note(known: dict[str, _Word], name: str, word: _Word, leaving: bool) -> None:
    known.pop(name, None)
    if not leaving:
        known[name] = word


async def listen(log: Log, topics: Topics, listen_ms: int = LISTEN_MS) -> Heard:
    """Listen for so long to what is said from now on; all of it is said again and again. Raises LogUnavailable."""
    places = [(topics.signals, BROADCAST), *((topics.workers, n) for n in range(topics.worker_partitions))]
    ends = await asyncio.gather(*(log.bounds(*place) for place in places))
    heard = Heard()
    until_s = time.monotonic() + listen_ms / 1_000
    async with log.tail({place: bounds.end for place, bounds in zip(places, ends, strict=True)}) as tail:
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                records = await tail.poll(max(1, int(left_s * 1_000)))
            except (OffsetTrimmed, OffsetBeyondEnd) as error:
                await go_on_behind(log, tail, error)
                continue
            for record in records:
                heard.take(record, topics)
    return heard


async def go_on_behind(log: Log, tail: Tail, error: OffsetTrimmed | OffsetBeyondEnd) -> None:
    """Let go of what a tail has missed of the partition that ``error`` is about: for what is said again and again."""
    missed = error.details["topic"], error.details["partition"]
    tail.follow(*missed, (await log.bounds(*missed)).end)
