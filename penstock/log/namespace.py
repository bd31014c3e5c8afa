"""The topics of one namespace on a log: made if missing, checked if there, and bound together by control's first line.

That line says how many partitions the jobs topic has, which generation of the log this is (it grows when a
log is copied, so that fences never regress), and which rules its partitions follow from their beginning: the newest
that the program had which made it. A process set up for other numbers, or without those rules, stops here and not
after it has misplaced a job. A namespace that is a copy says so in that line, and is closed to everybody until a
``CopySealed`` stands behind it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from penstock.core.rules import RULES, newest
from penstock.log.port import Log, Record, TopicSpec
from penstock.schemas.codec import decode_line, encode_line, split
from penstock.schemas.errors import LogCopying, LogUnavailable, TopicMismatch, Undecodable, UnknownRules
from penstock.schemas.events import AnyEvent, Configured, CopySealed, Raw
from penstock.schemas.position import pack
from penstock.schemas.topics import HINT_RETENTION_MS, Topics

_POLL_MS = 500
_SILENT_POLLS = 20


class LogShape(msgspec.Struct, frozen=True, omit_defaults=True):
    """What control's first line fixes. Of a log that is a copy it also names the copy, and its source for people."""

    partitions: int
    generation: int = 0
    copy: str = ""
    copied_from: str = ""
    rules: int = 1


class _FirstSettings(msgspec.Struct, frozen=True):
    log: LogShape


class Namespace(msgspec.Struct, frozen=True):
    """An opened namespace: its topics, the log's generation, and the rules that it was made with."""

    topics: Topics
    generation: int
    rules: int = 1


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


async def open_namespace(log: Log, topics: Topics, rules: int = newest(RULES)) -> Namespace:
    """Make or check the namespace's topics.

    Args:
        rules: the highest version that the opening program has; a namespace that it makes follows them.

    Raises:
        TopicMismatch: a topic, or the number of partitions, is not as it must be.
        UnknownRules: it was made with rules that are newer.
        LogCopying: it is a copy of another log, and not complete yet.
        LogUnavailable: the log does not answer.
    """
    shape = await begin_namespace(log, topics, LogShape(topics.partitions, rules=rules))
    if shape.partitions != topics.partitions:
        raise TopicMismatch(
            f"namespace {topics.namespace!r} was made with {shape.partitions} partitions; this process is set to"
            f" {topics.partitions} (PENSTOCK_PARTITIONS)"
        )
    if shape.rules > rules:
        raise UnknownRules(
            f"namespace {topics.namespace!r} was made with rules {shape.rules}, and this program knows none above"
            f" {rules}: upgrade Penstock here, then start it again."
        )
    if shape.copy and not await is_sealed(log, topics, shape):
        raise LogCopying(
            f"namespace {topics.namespace!r} is being copied from {shape.copied_from}: it can be used once"
            " `penstock log copy` has sealed it",
            namespace=topics.namespace,
            copied_from=shape.copied_from,
        )
    if shape.copy:
        await _check_copy_is_there(log, topics)
    return Namespace(topics, shape.generation, shape.rules)


async def begin_namespace(log: Log, topics: Topics, shape: LogShape) -> LogShape:
    """Make the topics that are missing, and control's first line; returns what that says, for it may have been there.

    Raises:
        TopicMismatch, LogUnavailable: see :func:`open_namespace`.
    """
    specs = topic_specs(topics)
    await _check_none_is_gone(log, topics, specs)
    await log.ensure_topics(specs)
    if (await log.bounds(topics.control, 0)).end == 0:
        settings = msgspec.json.encode(_FirstSettings(shape))
        line = Configured(
            id="control.0", actor="penstock", control_position=0, previous=-1, settings=Raw(settings)
        )
        await log.append(topics.control, 0, encode_line(line))
    return await read_shape(log, topics)


async def _check_none_is_gone(log: Log, topics: Topics, specs: Sequence[TopicSpec]) -> None:
    """Control's first line was written when every topic was there. One that is missing now had records."""
    existing = await log.topic_names()
    if topics.control not in existing or (await log.bounds(topics.control, 0)).end == 0:
        return
    for spec in specs:
        if spec.durable and spec.name not in existing:
            raise TopicMismatch(
                f"topic {spec.name!r} was there and is gone, with all its records; no empty one is made in its place."
                f" To begin anew, delete {topics.control!r} as well, and the folders of roles (PENSTOCK_DATA)",
                topic=spec.name,
            )


async def _check_copy_is_there(log: Log, topics: Topics) -> None:
    """Every partition of a copy begins with what was copied, or at least with the line that seals it."""
    for number in range(topics.partitions):
        if (await log.bounds(topics.jobs, number)).end == 0:
            raise TopicMismatch(
                f"partition {number} of {topics.jobs!r} is empty, though the log is a copy: the topic was made anew,"
                " and its records are gone",
                topic=topics.jobs,
            )


async def read_shape(log: Log, topics: Topics) -> LogShape:
    """What the first line of the control topic says. Raises TopicMismatch where it cannot be read."""
    async with aclosing(control_records(log, topics)) as records:
        async for record in records:
            return _shape_in(record, topics)
    raise TopicMismatch(f"{topics.control!r} is empty: nothing says what the log is")


def _shape_in(record: Record, topics: Topics) -> LogShape:
    try:
        event = decode_line(record.value.split(b"\n", 1)[0])
        if isinstance(event, Configured):
            return msgspec.json.decode(event.settings, type=_FirstSettings).log
    except (Undecodable, msgspec.DecodeError) as error:
        raise TopicMismatch(f"the first line of {topics.control!r} cannot be read: {error}") from error
    raise TopicMismatch(f"the first line of {topics.control!r} does not describe the log")


async def control_records(log: Log, topics: Topics) -> AsyncGenerator[Record, None]:
    """The records that the control topic has now, in order.

    Raises:
        LogUnavailable: the log does not give them.
    """
    bounds = await log.bounds(topics.control, 0)
    next_offset = bounds.start
    silent = 0
    async with log.tail({(topics.control, 0): bounds.start}) as tail:
        while next_offset < bounds.end:
            records = await tail.poll(_POLL_MS, 100)
            silent = 0 if records else silent + 1
            if silent == _SILENT_POLLS:
                raise LogUnavailable(f"{topics.control!r} could not be read at offset {next_offset}")
            for record in records:
                next_offset = record.offset + 1
                if record.offset < bounds.end:
                    yield record


async def is_sealed(log: Log, topics: Topics, shape: LogShape) -> bool:
    """Whether the copy that a namespace is was completed: control says so, behind its first line."""
    async with aclosing(control_records(log, topics)) as records:
        async for record in records:
            for event in map(_decoded, split(record.value)):
                if isinstance(event, CopySealed) and event.copy == shape.copy:
                    return True
    return False


async def seal_namespace(log: Log, topics: Topics, shape: LogShape, rules: int) -> None:
    """Say on the control topic that the copy is complete."""
    event = CopySealed(
        id=f"{shape.copy}.sealed",
        actor="penstock",
        copy=shape.copy,
        generation=shape.generation,
        rules=rules,
        copied_from=shape.copied_from,
    )
    await log.append(topics.control, 0, encode_line(event))


async def ask_for_rules(log: Log, topics: Topics, version: int, actor: str) -> None:
    """Ask on the control topic that all partitions follow these rules: their leaders see to it."""
    bounds = await log.bounds(topics.control, 0)
    line = Configured(
        id=f"rules.{version}",
        actor=actor,
        control_position=pack(bounds.end, 0),
        previous=pack(bounds.end - 1, 0),
        settings=Raw(msgspec.json.encode(_Rules(version))),
    )
    await log.append(topics.control, 0, encode_line(line))


class _Rules(msgspec.Struct, frozen=True):
    rules: int = 0


class _RulesSettings(_Rules, frozen=True):
    log: _Rules = _Rules()
    """What control's first line says."""


def wanted_rules(value: bytes) -> int:
    """The highest version of the rules that a record of the control topic asks for; 0 where it asks for none.

    The first line asks for those that the namespace was made with.
    """
    wanted = 0
    for event in map(_decoded, split(value)):
        if isinstance(event, Configured):
            try:
                settings = msgspec.json.decode(event.settings, type=_RulesSettings)
                wanted = max(wanted, settings.rules, settings.log.rules)
            except msgspec.DecodeError:
                continue
    return wanted


def _decoded(line: bytes) -> AnyEvent | None:
    try:
        return decode_line(line)
    except Undecodable:
        return None
