"""Where a search of one partition looks: the narrowest index that has all jobs which can match, in creation order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from heapq import nlargest, nsmallest

from penstock.core.job_state import Job
from penstock.core.rows import decode_job_row, job_row_key
from penstock.log.kv import KeyValueStore
from penstock.projections.groups import Group, Groups
from penstock.projections.port import JobFilter
from penstock.projections.rows import INDEX, MARKS, behind, index_key, split_index_key
from penstock.schemas.ids import job_key
from penstock.state.partition_store import FOLD

ListKey = tuple[int, str]
"""A job's place in creation order: creation time in Unix ms, job id."""

MOST_WITH_PREFIX = 5_000
"""With more ids that begin alike, groups are looked through instead."""

_TAG, _UNIQUE = b"t", b"u"


def marks_of(job: Job) -> list[bytes]:
    """What the keys begin with under which a job stands in the index of marks: its tags, and its unique key."""
    marks = [_mark(_TAG, job.tenant, tag) for tag in job.tags]
    if job.unique_key:
        marks.append(_unique_mark(job.tenant, job.unique_key))
    return marks


def _mark(kind: bytes, tenant: str, name: str) -> bytes:
    return kind + job_key(tenant, name).encode() + b"\0"


def _unique_mark(tenant: str, key: str) -> bytes:
    # A key may be any text.
    return _mark(_UNIQUE, tenant, blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest())


class Candidates:
    """Asks one partition's indexes."""

    def __init__(self, kv: KeyValueStore, groups: Groups) -> None:
        self._kv = kv
        self._groups = groups

    def of(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None, limit: int, *, descending: bool = True
    ) -> list[ListKey]:
        """The first jobs behind ``edge`` among which all that match are, in creation order; fewer than ``limit`` only
        where there are no more. Now and then more than that."""
        window = _Window(wanted, edge, descending=descending)
        if wanted.unique_key:
            return self._marked([_unique_mark(tenant, wanted.unique_key)], window, limit)
        if wanted.id_prefix:
            found = self._with_prefix(tenant, wanted.id_prefix)
            if found is not None:
                return sorted(filter(window.has, found), reverse=descending)
        if wanted.tags:
            return self._marked([_mark(_TAG, tenant, wanted.tags[0])], window, limit)
        if wanted.tags_any:
            return self._marked([_mark(_TAG, tenant, tag) for tag in wanted.tags_any], window, limit)
        groups = self._groups.matching(tenant, wanted.state, wanted.queue, wanted.type, wanted.pool)
        return self._in_groups(groups, window, limit)

    def _in_groups(self, groups: list[Group], window: _Window, limit: int) -> list[ListKey]:
        """Newest first, groups are opened from the one with the newest job on, until none can have anything newer than
        what is found."""
        groups.sort(key=lambda group: group.newest_ms, reverse=True)
        found: list[ListKey] = []
        for group in groups:
            full = len(found) >= limit
            if full and window.descending and group.newest_ms < found[-1][0]:
                break
            least = found[limit - 1] if full else None
            more = list(self._scan(INDEX, group.prefix, window, min(limit, group.jobs), least))
            if more:
                found = sorted((*found, *more), reverse=window.descending)[:limit]
        return found

    def _marked(self, marks: Sequence[bytes], window: _Window, limit: int) -> list[ListKey]:
        found = {key for mark in marks for key in self._scan(MARKS, mark, window, limit)}
        return nlargest(limit, found) if window.descending else nsmallest(limit, found)

    def _scan(
        self, family: str, prefix: bytes, window: _Window, limit: int, least: ListKey | None = None
    ) -> Iterator[ListKey]:
        """Keys of one index in order, as far as ``least``, behind which they are of no use."""
        start, stop = window.bounds(prefix)
        for row, _ in self._kv.scan(family, start, stop, reverse=window.descending, limit=limit):
            key = split_index_key(row, len(prefix))
            if least is not None and (key < least if window.descending else key > least):
                return
            yield key

    def _with_prefix(self, tenant: str, prefix: str) -> list[ListKey] | None:
        """All jobs whose ids begin so; None if they are too many."""
        start = job_row_key(job_key(tenant, prefix))
        found: list[ListKey] = []
        for row, data in self._kv.scan(FOLD, start, limit=MOST_WITH_PREFIX + 1):
            if not row.startswith(start):
                break
            job = decode_job_row(data)
            found.append((job.created_at_ms, job.id))
        return None if len(found) > MOST_WITH_PREFIX else found


class _Window:
    """Between which places in creation order a search looks, and which way."""

    def __init__(self, wanted: JobFilter, edge: ListKey | None, *, descending: bool) -> None:
        self.descending = descending
        self._low: ListKey = (wanted.created_after or 0, "")
        """Not before this place."""
        self._high: ListKey | None = None if wanted.created_before is None else (wanted.created_before, "")
        """Before this place."""
        if edge is not None and descending:
            self._high = edge if self._high is None else min(edge, self._high)
        elif edge is not None:
            # No id has a NUL: this is the next place behind the edge.
            self._low = max((edge[0], edge[1] + "\0"), self._low)

    def has(self, key: ListKey) -> bool:
        return key >= self._low and (self._high is None or key < self._high)

    def bounds(self, prefix: bytes) -> tuple[bytes, bytes]:
        stop = behind(prefix) if self._high is None else index_key(prefix, *self._high)
        return index_key(prefix, *self._low), stop
