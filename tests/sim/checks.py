"""What must hold inside an orchestrator's machine after every step."""

from __future__ import annotations

from collections import Counter
from typing import Any

from penstock.core.job import Job
from penstock.log.store_memory import MemoryStore
from penstock.orchestrator.machine import OrchestratorMachine
from penstock.orchestrator.partition import PartitionMachine
from penstock.orchestrator.rows import (
    BACKLOG,
    COUNTS,
    REFUSED,
    TIMERS,
    Lane,
    lane_of,
    place_of,
    rows_of,
    turn_of,
)
from penstock.projections.port import JobsQuery
from penstock.projections.rows import INDEX
from tests.sim.referee import Referee
from tests.sim.world import World

# The simulator looks at what the machine keeps to itself: that is what its invariants are about.


def check_machine(world: World, referee: Referee, machine: OrchestratorMachine) -> None:
    _fleet(world, machine)
    for one in machine.partitions.values():
        store = one.store
        if not store.touched:
            referee.compare(store.partition, store.committed_offset, store.digest, machine.name)
            if store.committed_offset == store.next_offset and world.random.random() < 0.05:
                check_rows(world, one)
        if one.role == "leading" and world.random.random() < 0.05:
            check_backlog(world, one)


def _fleet(world: World, machine: OrchestratorMachine) -> None:
    """Sessions know exactly what is leased and proposed to them."""
    proposed: Counter[int] = Counter()
    leases: set[tuple[int, int, str]] = set()
    for one in machine.partitions.values():
        for _, proposal in one._proposals:
            proposed[id(proposal.session)] += 1
        for key, lease in one._leases._leases.items():
            leases.add((id(lease.session), one.number, key))
    held = {(id(session), *lease) for session in machine.fleet for lease in session.leases}
    world.require(
        held == leases, lambda: f"{machine.name}: sessions hold {held ^ leases} more or less than leased"
    )
    for session in machine.fleet:
        world.require(
            session.yielding == sum(session.leases.values()),
            lambda session=session: f"{machine.name}: {session.key} counts {session.yielding} that yield",
        )
        world.require(
            session.proposed == proposed[id(session)],
            lambda session=session: (
                f"{machine.name}: {session.key} has {session.proposed} proposed, {proposed[id(session)]} are"
            ),
        )


def check_rows(world: World, one: PartitionMachine) -> None:
    """The rows derived from jobs are those that all jobs together make, and so are the counts. Only after a commit."""
    kv = one.store.store
    assert isinstance(kv, MemoryStore)
    wanted: dict[tuple[str, bytes], bytes] = {}
    ready: Counter[Lane] = Counter()
    for _, job in one.store.committed_jobs():
        wanted.update(((family, key), value) for family, key, value in rows_of(job))
        if job.state == "ready":
            ready[lane_of(job)] += 1
    found = {
        (family, key): value
        for family in (BACKLOG, TIMERS)
        for key, value in kv.scan(family)
        if not (family == BACKLOG and key[:1] in (COUNTS, REFUSED))
    }
    world.require(
        found == wanted,
        lambda: f"partition {one.number}: rows differ: {set(found.items()) ^ set(wanted.items())}",
    )
    world.require(
        dict(ready) == one.ready, lambda: f"partition {one.number}: {one.ready} ready counted, {ready} are"
    )


def _waits_for_its_turn(one: PartitionMachine, job: Job) -> bool:
    """Whether a job that is not in the backlog will be called: another has the turn, or one of its lane comes first."""
    turns, name = one._backlog.turns, turn_of(job) if job.concurrency_key else b""
    called = turns._passed.get(name)
    if called is None or job.key in called:
        return False
    before = [other for key in called if (other := one.store.job(key)) is not None and other.state == "ready"]
    return (
        name in turns._has or name in turns._free or any(lane_of(job) == lane_of(other) for other in before)
    )


def check_backlog(world: World, one: PartitionMachine) -> None:
    """Every ready job is in the window, beyond it in the store, or proposed; every lease kept; every debt known."""
    for key, job in all_jobs(one).items():
        if job.state == "ready" and key not in one._proposals:
            window = one._backlog._windows.get(lane_of(job))
            inside = window is not None and (
                (job.order, key) in window.entries
                or (window.rest_from is not None and place_of(job.order, job.key) >= window.rest_from)
            )
            inside = inside or _waits_for_its_turn(one, job)
            world.require(inside, lambda key=key: f"partition {one.number}: {key} is ready and in no backlog")
        lease = one._leases.get(key)
        if job.state == "active":
            world.require(
                lease is not None and lease.lease == job.lease,
                lambda key=key: f"partition {one.number}: the lease of {key} is not kept",
            )
        else:
            world.require(
                lease is None, lambda key=key: f"partition {one.number}: {key} has no lease, but one is kept"
            )
        if job.state == "dead" and not job.dead_lettered:
            world.require(
                key in one._owed, lambda key=key: f"partition {one.number}: {key} is owed a dead letter"
            )


def all_jobs(one: PartitionMachine) -> dict[str, Job]:
    """As of the last folded line."""
    jobs = dict(one.store.committed_jobs())
    for row in list(one.store._rows):
        if row[:1] == b"j":
            _put(jobs, row[1:].decode(), one.store.job(row[1:].decode()))
    for key, job in one.store._fold.touched_jobs():
        _put(jobs, key, job)
    return jobs


def _put(jobs: dict[str, Job], key: str, job: Job | None) -> None:
    if job is None:
        jobs.pop(key, None)
    else:
        jobs[key] = job


def check_views(world: World, part: Any, who: str) -> None:
    """A read model's counts and lists are what a recount of all its jobs gives. Only after a commit."""
    store = part.store
    recount: Counter[tuple[str, str, str, str]] = Counter()
    listed: set[str] = set()
    tenants: set[str] = set()
    for _, job in store.committed_jobs():
        if job.state == "deleted":
            continue
        recount[job.state, job.queue, job.pool, job.job_type] += 1
        listed.add(job.id)
        tenants.add(job.tenant)
    world.require(tenants <= {"default"}, f"{who} knows tenants {tenants}")
    counted = {
        (row.state, row.queue, row.pool, row.type): row.jobs
        for row in part.queries.counts("default")
        if row.jobs
    }
    world.require(
        counted == dict(recount),
        lambda: f"{who} counts {counted} in {store.partition}; a recount gives {recount}",
    )
    found = [job_id for _, job_id in part.queries.newest(JobsQuery(), None, 10**6)]
    rows = sum(1 for _ in store.store.scan(INDEX))
    world.require(
        sorted(found) == sorted(listed) and rows == len(listed),
        lambda: f"{who} lists {len(found)} jobs in {rows} rows, and has {len(listed)}",
    )
