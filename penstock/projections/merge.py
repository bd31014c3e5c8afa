"""Answers of several partitions, or of several processes, made one: pages newest first, their cursors, counts."""

from __future__ import annotations

import binascii
import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from penstock.projections.port import CountRow, JobsPage, JobView, OperatedPage, QuarantinedItem
from penstock.schemas.errors import InvalidCursor, InvalidField
from penstock.schemas.limits import MAX_TIME_MS
from penstock.schemas.position import Position, parse, parse_token, token
from penstock.schemas.times import text_time_ms

MAX_LIMIT = 1_000

T = TypeVar("T")
QuarantinePage = tuple[list[QuarantinedItem], str | None]


def check_limit(limit: int) -> None:
    """Raise InvalidField unless a page of this size may be asked for."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidField(f"limit must be from 1 to {MAX_LIMIT}", field="limit")


def merge_newest(
    sources: Sequence[tuple[Sequence[T], bool]], key: Callable[[T], Any], limit: int
) -> tuple[list[T], bool]:
    """The first ``limit`` items of all sources, each newest first, and whether there are more.

    A source is its items and whether it has more behind them; beyond the last item of such a one nothing is certain, so
    the page ends there.
    """
    left = [len(items) for items, _ in sources]
    page: list[T] = []

    def numbered(number: int) -> Iterator[tuple[T, int]]:
        return ((item, number) for item in sources[number][0])

    streams = [numbered(number) for number in range(len(sources))]
    for item, source in heapq.merge(*streams, key=lambda pair: key(pair[0]), reverse=True):
        if len(page) == limit:
            return page, True
        page.append(item)
        left[source] -= 1
        if left[source] == 0 and sources[source][1]:
            return page, True
    return page, False


# Jobs


def encode_cursor(text: str) -> str:
    """A place in a list, as it is given out."""
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, listing: str) -> str:
    """What :func:`encode_cursor` was given. Raises InvalidCursor, which says that it is none of ``listing``."""
    try:
        return urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise InvalidCursor(f"cursor is not one that {listing} gave out") from error


def parse_place(text: str, listing: str) -> tuple[int, str]:
    """Time (Unix ms) and job id of a place that a cursor names. Raises InvalidCursor as :func:`decode_cursor`."""
    time, dot, job_id = text.partition(".")
    if not dot or not time.isdigit() or len(time) > 15 or int(time) > MAX_TIME_MS:
        raise InvalidCursor(f"cursor is not one that {listing} gave out")
    return int(time), job_id


_LIST = "a list of jobs"


def list_cursor(created_at_ms: int, job_id: str) -> str:
    """The cursor that continues a list after this job."""
    return encode_cursor(f"{created_at_ms}.{job_id}")


def parse_list_cursor(cursor: str) -> tuple[int, str] | None:
    """Creation time and id of the job to continue after; None for no cursor. Raises InvalidCursor."""
    return parse_place(decode_cursor(cursor, _LIST), _LIST) if cursor else None


def merge_job_pages(pages: Sequence[JobsPage], limit: int) -> JobsPage:
    """Pages of several processes as one."""

    def newest(job: JobView) -> tuple[str, str]:
        return job.created_at, job.id

    sources = [(page.items, page.next_cursor is not None) for page in pages]
    items, more = merge_newest(sources, newest, limit)
    total = sum(page.total for page in pages)
    if not more:
        return JobsPage(items, None, total)
    return JobsPage(items, list_cursor(text_time_ms(items[-1].created_at), items[-1].id), total)


# Quarantine


def parse_quarantine_cursor(cursor: str) -> Mapping[int, Position]:
    """The last shown position of each partition. Raises InvalidCursor."""
    return parse_token(cursor) if cursor else {}


def merge_quarantine(pages: Sequence[QuarantinePage], limit: int, cursor: str) -> QuarantinePage:
    """Pages of several partitions or processes, newest first, as one."""

    def newest(item: QuarantinedItem) -> tuple[str, Position]:
        return item.at, parse(item.position)

    sources = [(items, next_cursor is not None) for items, next_cursor in pages]
    items, more = merge_newest(sources, newest, limit)
    if not more:
        return items, None
    shown = dict(parse_quarantine_cursor(cursor))
    for item in items:
        position = parse(item.position)
        shown[position.partition] = position
    return items, token(shown.values())


# Operations


def merge_operated(pages: Sequence[OperatedPage], limit: int) -> OperatedPage:
    """Pages of several partitions or processes, by job id, as one."""
    counts: Counter[str] = Counter()
    for page in pages:
        counts.update(page.counts)
    items = sorted((item for page in pages for item in page.items), key=lambda item: item.job)
    more = len(items) > limit or any(page.next_cursor for page in pages)
    items = items[:limit]
    return OperatedPage(items, items[-1].job if more and items else None, dict(counts))


# Counts


def merge_counts(rows: Iterable[CountRow]) -> list[CountRow]:
    """Rows of several partitions summed up, sorted by name."""
    total: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        name = (row.state, row.queue, row.pool, row.type)
        total[name] = total.get(name, 0) + row.jobs
    return [CountRow(*name, jobs) for name, jobs in sorted(total.items())]
