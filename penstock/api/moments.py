"""Moments that something is asked for as of: a time, or a position of the log."""

from __future__ import annotations

import re

import msgspec

from penstock.api.deps import ApiDeps
from penstock.client.enqueued import time_ms
from penstock.client.redrive import record_at
from penstock.client.requests import Moment as Time
from penstock.projections.port import Moment
from penstock.schemas.errors import InvalidField, NotFound
from penstock.schemas.position import parse

_is_position = re.compile(r"\d+:\d+:\d+\Z").match


async def moment_of(deps: ApiDeps, at: str) -> Moment:
    """A moment of the whole log. Of a position the other partitions are taken as of the time of its record.

    Raises:
        InvalidField: it is neither, or there is nothing at the position.
        LogUnavailable: the log does not tell that time.
    """
    if not _is_position(at):
        return Moment(_time_ms(at))
    position = parse(at)
    try:
        record = await record_at(deps.log, deps.topics, position.partition, position.offset)
    except NotFound as error:
        raise InvalidField(f"at: {error}", field="at") from error
    return Moment(record.time_ms, position.partition, position.packed)


def moment_in(at: str, partition: int) -> tuple[int | None, int]:
    """A log time, Unix ms, or else a packed position of this partition. Raises InvalidField."""
    if not _is_position(at):
        return _time_ms(at), 0
    position = parse(at)
    if position.partition != partition:
        raise InvalidField(
            f"at: the job is in partition {partition}: only positions there order it", field="at"
        )
    return None, position.packed


def _time_ms(at: str) -> int:
    try:
        return time_ms("at", msgspec.convert(at, Time))
    except msgspec.ValidationError as error:
        raise InvalidField(
            "at: a time with its zone (RFC 3339), or partition:offset:line", field="at"
        ) from error
