"""The topics of one namespace on a log: made if missing, checked if there, and bound together by control's first line.

That line says how many partitions the jobs topic has and which generation of the log this is (it grows when a
log is copied, so that fences never regress). A process set up for other numbers stops here and not after it
has misplaced a job.
"""

from __future__ import annotations

import msgspec

from penstock.log.port import Log, TopicSpec
from penstock.schemas.codec import decode_line, encode_line
from penstock.schemas.errors import LogUnavailable, TopicMismatch, Undecodable
from penstock.schemas.events import Configured, Raw
from penstock.schemas.topics import HINT_RETENTION_MS, Topics

_ATTEMPTS = 20


class LogShape(msgspec.Struct, frozen=True):
    """What control's first line fixes."""

    partitions: int
    generation: int = 0


class _FirstSettings(msgspec.Struct, frozen=True):
    log: LogShape


class Namespace(msgspec.Struct, frozen=True):
    """An opened namespace: its topics and the log's generation."""

    topics: Topics
    generation: int


def topic_specs(topics: Topics) -> list[TopicSpec]:
    """How each topic of a namespace must be."""

    def hint(name: str, partitions: int) -> TopicSpec:
        return TopicSpec(name, partitions, durable=False, retention_ms=HINT_RETENTION_MS)

    return [
        TopicSpec(topics.jobs, topics.partitions),
        TopicSpec(topics.control, 1),
        TopicSpec(topics.quarantine, 1),
        *(hint(name, topics.work_partitions) for name in topics.work_topics),
        hint(topics.signals, topics.work_partitions),
        hint(topics.workers, topics.worker_partitions),
    ]


async def open_namespace(log: Log, topics: Topics) -> Namespace:
    """Make or check the namespace's topics.

    Raises:
        TopicMismatch: a topic, or the number of partitions, is not as it must be.
        LogUnavailable: the log does not answer.
    """
    await log.ensure_topics(topic_specs(topics))
    if (await log.bounds(topics.control, 0)).end == 0:
        settings = msgspec.json.encode(_FirstSettings(LogShape(topics.partitions)))
        line = Configured(
            id="control.0", actor="penstock", control_position=0, previous=-1, settings=Raw(settings)
        )
        await log.append(topics.control, 0, encode_line(line))
    shape = await _first_line(log, topics)
    if shape.partitions != topics.partitions:
        raise TopicMismatch(
            f"namespace {topics.namespace!r} was made with {shape.partitions} partitions; this process is set to"
            f" {topics.partitions} (PENSTOCK_PARTITIONS)"
        )
    return Namespace(topics, shape.generation)


async def _first_line(log: Log, topics: Topics) -> LogShape:
    start = (await log.bounds(topics.control, 0)).start
    async with log.tail({(topics.control, 0): start}) as tail:
        for _ in range(_ATTEMPTS):
            for record in await tail.poll(500, 1):
                try:
                    event = decode_line(record.value.split(b"\n", 1)[0])
                    if isinstance(event, Configured):
                        return msgspec.json.decode(event.settings, type=_FirstSettings).log
                except (Undecodable, msgspec.DecodeError) as error:
                    raise TopicMismatch(
                        f"the first line of {topics.control!r} cannot be read: {error}"
                    ) from error
                raise TopicMismatch(f"the first line of {topics.control!r} does not describe the log")
    raise LogUnavailable(f"the first line of {topics.control!r} could not be read")
