"""Groups of jobs alike in tenant, state, queue, pool and type: exact counts, and the key that lists them.

Every list and count is an answer over some of the groups, which are few, and held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from penstock.core.job import Job
from penstock.log.kv import Batch, KeyValueStore
from penstock.projections.port import ALL, JobFilter
from penstock.projections.rows import COUNTERS, INDEX, behind, encode, split_index_key

_MAX_EMPTY = 1_000
"""Empty groups kept in memory; a queue that empties and fills should not get a new number each time."""


class GroupName(NamedTuple):
    tenant: str
    state: str
    queue: str
    pool: str
    job_type: str


class Group:
    """``newest_ms`` is no earlier than any of its jobs' creation; ``prefix`` begins its index rows."""

    __slots__ = ("jobs", "name", "newest_ms", "prefix")

    def __init__(self, name: GroupName, prefix: bytes, jobs: int = 0, newest_ms: int = 0) -> None:
        self.name = name
        self.prefix = prefix
        self.jobs = jobs
        self.newest_ms = newest_ms


class _GroupRow(msgspec.Struct, array_like=True):
    tenant: str
    state: str
    queue: str
    pool: str
    job_type: str
    jobs: int


_decode_row = msgspec.msgpack.Decoder(_GroupRow).decode


class Groups:
    """All groups of one partition. Their counts change in memory as a batch is built, and are written with it."""

    def __init__(self, store: KeyValueStore) -> None:
        self._groups: dict[tuple[str, str, str, str, str], Group] = {}
        self._changed: dict[bytes, Group] = {}
        self._next = 0
        for key, data in store.scan(COUNTERS):
            row = _decode_row(data)
            name = GroupName(row.tenant, row.state, row.queue, row.pool, row.job_type)
            self._groups[name] = Group(name, key, row.jobs, _newest_ms(store, key))
            self._next = int.from_bytes(key, "big") + 1

    def __iter__(self) -> Iterator[Group]:
        return (group for group in self._groups.values() if group.jobs)

    def of(self, job: Job) -> Group:
        """The job's group, made if it is new."""
        name = (job.tenant, job.state, job.queue, job.pool, job.job_type)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(GroupName(*name), self._next.to_bytes(4, "big"))
            self._next += 1
        return group

    def add(self, group: Group, created_at_ms: int) -> None:
        """One job more."""
        group.jobs += 1
        if created_at_ms > group.newest_ms:
            group.newest_ms = created_at_ms
        self._changed[group.prefix] = group

    def remove(self, group: Group) -> None:
        """One job less."""
        group.jobs -= 1
        self._changed[group.prefix] = group

    def write(self, batch: Batch) -> None:
        """Put the counts changed since the last write into ``batch``."""
        for prefix, group in self._changed.items():
            if group.jobs:
                batch.put(COUNTERS, prefix, encode((*group.name, group.jobs)))
            else:
                batch.delete(COUNTERS, prefix)
        self._changed.clear()
        self._drop_empty()

    def matching(self, tenant: str, wanted: JobFilter = ALL) -> list[Group]:
        """Groups that have jobs, with the state, queue, pool and type that a filter asks for."""
        return [
            group
            for group in self._groups.values()
            if group.jobs and group.name.tenant == tenant and wanted.takes(*group.name[1:])
        ]

    def _drop_empty(self) -> None:
        if len(self._groups) <= _MAX_EMPTY:
            return
        empty = [name for name, group in self._groups.items() if not group.jobs]
        if len(empty) > _MAX_EMPTY:
            for name in empty:
                del self._groups[name]


def _newest_ms(store: KeyValueStore, prefix: bytes) -> int:
    for key, _ in store.scan(INDEX, prefix, behind(prefix), reverse=True, limit=1):
        return split_index_key(key, len(prefix))[0]
    return 0
