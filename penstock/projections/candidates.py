"""Where a search of one partition looks: the narrowest index that has all jobs which can match, in creation order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple, Protocol

from penstock.core.job_state import Job
from penstock.core.rows import decode_job_row, job_row_key
from penstock.log.kv import KeyValueStore
from penstock.projections.groups import Groups
from penstock.projections.port import JobFilter
from penstock.projections.rows import INDEX, MARKS, behind, index_key, split_index_key
from penstock.schemas.ids import job_key
from penstock.state.partition_store import FOLD

ListKey = tuple[int, str]
"""A job's place in creation order: creation time in Unix ms, job id."""

MOST_WITH_PREFIX = 1_000
"""With more ids that begin alike, groups are looked through instead."""

FEW_IN_GROUPS = 1_000
"""So few jobs of the states, queues, pools and types asked for are looked through, whatever else is asked."""

_TAG, _UNIQUE, _CONCURRENCY, _BATCH, _WORKFLOW, _ERRORS, _DELETED = b"t", b"u", b"c", b"b", b"w", b"e", b"d"
_EVER_MS = 1 << 63
_COMPLEMENT = bytes(range(255, -1, -1))


class _Head(NamedTuple):
    """The next place below a prefix, by its rank; no place where it was not looked at yet."""

    ms: int
    name: bytes
    number: int
    place: ListKey | None
    rest: Iterator[ListKey]


class Texts(Protocol):
    """A text index, where there is one."""

    @property
    def whole(self) -> bool:
        """Whether it has the whole partition."""
        ...

    def places(self, tenant: str, wanted: JobFilter, window: Window) -> Iterator[ListKey] | None:
        """Of jobs among which all that match are, in order; None where these would not be few."""
        ...


def marks_of(job: Job, *, has_errors: bool) -> list[bytes]:
    """What the keys begin with under which a job stands in the index of marks: its tags, its keys, its batch and
    workflow, and whether it has errors; of a deleted one only that it is."""
    if job.state == "deleted":
        return [_mark(_DELETED, job.tenant, "")]
    marks = [_mark(_TAG, job.tenant, tag) for tag in job.tags]
    if job.unique_key:
        marks.append(_key_mark(_UNIQUE, job.tenant, job.unique_key))
    if job.concurrency_key:
        marks.append(_key_mark(_CONCURRENCY, job.tenant, job.concurrency_key))
    marks += batch_marks_of(job)
    if has_errors:
        marks.append(errors_mark(job.tenant))
    return marks


def batch_marks(tenant: str, batches: Iterable[str], workflows: Iterable[str]) -> list[bytes]:
    """What the keys of jobs of these batches, and of these workflows, begin with. An empty name is none."""
    marks = [_mark(_BATCH, tenant, name) for name in batches if name]
    return marks + [_mark(_WORKFLOW, tenant, name) for name in workflows if name]


def batch_marks_of(job: Job) -> Sequence[bytes]:
    """Those of its batch and its workflow; most jobs have neither."""
    if not job.batch and not job.workflow:
        return ()
    return batch_marks(job.tenant, (job.batch,), (job.workflow,))


def errors_mark(tenant: str) -> bytes:
    """What the keys of jobs with errors begin with."""
    return _mark(_ERRORS, tenant, "")


def _mark(kind: bytes, tenant: str, name: str) -> bytes:
    return kind + job_key(tenant, name).encode() + b"\0"


def _key_mark(kind: bytes, tenant: str, key: str) -> bytes:
    # A key may be any text.
    return _mark(kind, tenant, blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest())


class Candidates:
    """Asks one partition's indexes."""

    def __init__(self, kv: KeyValueStore, groups: Groups) -> None:
        self._kv = kv
        self._groups = groups
        self.texts: Texts | None = None

    def of(
        self, tenant: str, wanted: JobFilter, edge: ListKey | None = None, *, descending: bool = True
    ) -> Iterator[ListKey]:
        """Jobs behind ``edge`` among which all that match are, in creation order, along the index that is narrowest.

        Some may not match, or not be there any longer. Nothing is looked up before it is asked for.
        """
        window = Window(wanted, edge, descending=descending)
        if wanted.unique_key:
            return self._marked([_key_mark(_UNIQUE, tenant, wanted.unique_key)], window)
        if wanted.concurrency_key:
            return self._marked([_key_mark(_CONCURRENCY, tenant, wanted.concurrency_key)], window)
        if wanted.id_prefix:
            found = self._with_prefix(tenant, wanted.id_prefix)
            if found is not None:
                return iter(sorted(filter(window.has, found), reverse=descending))
        by_text = None if self.texts is None else self.texts.places(tenant, wanted, window)
        if by_text is not None:
            return by_text
        groups = self._groups.matching(tenant, wanted)
        by_group = [(INDEX, group.prefix, group.newest_ms) for group in groups]
        if sum(group.jobs for group in groups) <= FEW_IN_GROUPS:
            return self._merged(by_group, window)
        if wanted.batch or wanted.workflow:
            marks = batch_marks(tenant, wanted.batch, () if wanted.batch else wanted.workflow)
            return self._marked(marks, window)
        if wanted.tags:
            return self._marked([_mark(_TAG, tenant, wanted.tags[0])], window)
        if wanted.tags_any:
            return self._marked([_mark(_TAG, tenant, tag) for tag in wanted.tags_any], window)
        if wanted.has_errors or wanted.error_contains:
            return self._marked([errors_mark(tenant)], window)
        return self._merged(by_group, window)

    def deleted(self, tenant: str, window: Window) -> Iterator[ListKey]:
        """Jobs that are deleted, and are shown no longer."""
        return self._marked([_mark(_DELETED, tenant, "")], window)

    def _marked(self, marks: Sequence[bytes], window: Window) -> Iterator[ListKey]:
        return self._merged([(MARKS, mark, _EVER_MS) for mark in marks], window)

    def _merged(self, prefixes: Sequence[tuple[str, bytes, int]], window: Window) -> Iterator[ListKey]:
        """Places below several prefixes of a family, each once. Of each prefix it is known that nothing below it was
        created after a time: newest first, it is opened only once that time is reached."""
        heap: list[_Head] = [
            _Head(
                -newest_ms if window.descending else 0, b"", number, None, self._scan(family, prefix, window)
            )
            for number, (family, prefix, newest_ms) in enumerate(prefixes)
        ]
        heapify(heap)
        last: ListKey | None = None
        while heap:
            head = heap[0]
            if head.place is not None and head.place != last:
                yield head.place
                last = head.place
            place = next(head.rest, None)
            if place is None:
                heappop(heap)
            else:
                heapreplace(heap, _Head(*window.rank(place), head.number, place, head.rest))

    def _scan(self, family: str, prefix: bytes, window: Window) -> Iterator[ListKey]:
        """Places below one prefix, in order."""
        start, stop = window.bounds(prefix)
        for row, _ in self._kv.scan(family, start, stop, reverse=window.descending):
            yield split_index_key(row, len(prefix))

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


class Window:
    """Between which places in creation order a search looks, and which way: ``low <= place < high``."""

    def __init__(self, wanted: JobFilter, edge: ListKey | None, *, descending: bool) -> None:
        self.descending = descending
        self.low: ListKey = (wanted.created_after or 0, "")
        self.high: ListKey | None = None if wanted.created_before is None else (wanted.created_before, "")
        if edge is not None and descending:
            self.high = edge if self.high is None else min(edge, self.high)
        elif edge is not None:
            # No id has a NUL: this is the next place behind the edge.
            self.low = max((edge[0], edge[1] + "\0"), self.low)

    def has(self, place: ListKey) -> bool:
        return place >= self.low and (self.high is None or place < self.high)

    def bounds(self, prefix: bytes) -> tuple[bytes, bytes]:
        """As keys of one index."""
        stop = behind(prefix) if self.high is None else index_key(prefix, *self.high)
        return index_key(prefix, *self.low), stop

    def rank(self, place: ListKey) -> tuple[int, bytes]:
        """What sorts places in the order of the search, first ones lowest."""
        created_at_ms, job_id = place
        if self.descending:
            # The complement of a beginning would come before that of what goes on, but for the end.
            return -created_at_ms, job_id.encode().translate(_COMPLEMENT) + b"\xff"
        return created_at_ms, job_id.encode()
