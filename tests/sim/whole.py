"""A world of whole processes: every role as it is run, each on a loop of its own, under one virtual time."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec

from penstock.api.orders import OPERATION
from penstock.core.job_state import TERMINAL
from penstock.orchestrator.outbox import QuarantineLine
from penstock.projections.port import HistoryPage, JobView
from penstock.projections.queries import MAX_PACKED
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from penstock.schemas.position import parse
from tests.core.newer_rules import NEWER
from tests.sim import checks
from tests.sim.bulk import BulkHost
from tests.sim.clients import ProducerHost
from tests.sim.clocks import virtual_clocks
from tests.sim.handlers import Stage, Witness
from tests.sim.host import Host
from tests.sim.network import Exchange
from tests.sim.operators import CopierHost, UpgraderHost
from tests.sim.producer import STEPS, TYPES, Producer
from tests.sim.referee import Referee
from tests.sim.roles import ApiHost, FoldingHost, NodeHost, OrchestratorHost, ProjectionHost, WorkerHost
from tests.sim.scale import scaled
from tests.sim.weather import Weather, draw_whole
from tests.sim.world import World

CLEAR_SKY_MS = 300_000
MORE_STEPS = (*STEPS, "ok", "ok", "deaf", "cancelled", "exit", "snooze", "part", "quit")
LAST_WORDS_MS = 25_000
"""After the storm, how long somebody may change his mind about a job, or send a line again."""

ALREADY_ENDED_MS = 6_000
"""Beyond two lengths of a lease, when the lease of a process that is gone must have ended."""

_read_line = msgspec.json.Decoder(QuarantineLine).decode


def _notes(value: bytes) -> set[tuple[int, int]]:
    places = (parse(_read_line(line).position) for line in value.split(b"\n"))
    return {(place.partition, place.packed) for place in places}


def end_of(event: ev.Enqueued) -> tuple[str, ...]:
    """States that a job may end in when nothing goes wrong but what its own plan says."""
    plan = msgspec.json.decode(event.payload)["plan"]
    late = ("expired",) if event.expires_at else ()
    attempts = 0
    for what in plan:
        if what in ENDS_IT:
            return ENDS_IT[what], *late
        attempts += what != "snooze"
        if what == "fatal" or attempts == event.max_attempts:
            break
    return "dead", *late


ENDS_IT = {"ok": "succeeded", "slow": "succeeded", "part": "partial", "quit": "cancelled"}


class WholeRun:
    """A world and who lives in it."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.weather = weather = weather or draw_whole(Random(seed))
        world = self.world = World(seed, weather)
        referee = self.referee = Referee(world, _notes, NEWER)
        self.witness = Witness(world, referee)
        kind = NodeHost if weather.nodes else OrchestratorHost
        self.orchestrators = [kind(world, f"o{number}", referee) for number in range(weather.orchestrators)]
        self.projections = [
            ProjectionHost(world, f"p{number}", referee) for number in range(weather.projections)
        ]
        nodes = [host for host in self.orchestrators if isinstance(host, NodeHost)]
        self.readers: list[NodeHost | ProjectionHost] = [*nodes, *self.projections]
        apis = weather.apis if weather.http_workers else 0
        self.apis = [ApiHost(world, f"a{number}") for number in range(apis)]
        doors = [host.exchange for host in self.apis]
        self.workers = [
            self._worker(number, doors) for number in range(weather.workers + weather.http_workers)
        ]
        self.producers = [ProducerHost(world, "log-producer", referee.turned_away)]
        if doors:
            self.producers.append(ProducerHost(world, "rest-producer", referee.turned_away, doors))
        self.bulk = BulkHost(world, doors, lambda: list(self.expected)) if weather.operations_ms else None
        self.folding: list[FoldingHost] = [*self.orchestrators, *self.projections]
        self.hosts: list[Host] = [*self.folding, *self.apis, *self.workers, *self.producers]
        self.upgrader = UpgraderHost(world, self.folding) if weather.upgrade_ms else None
        extra = [host for host in (self.upgrader, self.bulk) if host is not None]
        self.everybody: list[Host] = [*self.hosts, *extra]
        self.producer = Producer(world, referee.held, MORE_STEPS, self._send)
        self._clear_ms = 0
        self.expected: dict[str, tuple[str, ...]] = {}
        """How each job ends in fair weather."""

    def _worker(self, number: int, doors: list[Exchange]) -> WorkerHost:
        over_http = number >= self.weather.workers
        # Each job type has a worker at least, and some can do both.
        types = TYPES if number in (0, self.weather.workers) else (TYPES[number % 2],)
        name = f"{'h' if over_http else 'w'}{number}"
        return WorkerHost(self.world, name, types, self.witness, doors if over_http else None)

    def _send(self, event: ev.Enqueued) -> bool:
        """Half of the jobs go by programs of our own; the rest is written by whoever can write to the log."""
        self.expected[event.job] = end_of(event)
        if self.world.random.random() < 0.5:
            return False
        self.world.random.choice(self.producers).take(event)
        return True

    def play(self) -> None:
        """Run to the end.

        Raises:
            Violation: with the seed and the last events.
        """
        Stage.witness = self.witness
        with scaled(self.weather), virtual_clocks(self.world):
            self._go()

    def _go(self) -> None:
        world = self.world
        for host in self.hosts:
            world.after(world.between(0, 200), host.start)
        self.producer.start()
        self._trouble()
        for at_ms in world.moments(self.weather.snapshots_ms):
            world.after(at_ms, self._take_snapshots)
        if self.upgrader is not None:
            self.upgrader.plan()
        if self.bulk is not None:
            world.after(world.between(0, 200), self.bulk.start)
            self.bulk.plan()
        world.after(1_000, self._look)
        world.run(self.weather.storm_ms)
        self._clear_up()
        world.run(max(world.mono_ms, world.last_fault_ms))
        self._clear_ms = world.mono_ms
        world.run(world.mono_ms + CLEAR_SKY_MS, self._all_done)
        self._reckon()
        if self.weather.copy_to:
            # Nobody may have anything left to write.
            world.run(world.mono_ms + LAST_WORDS_MS)
            world.run(world.mono_ms + CLEAR_SKY_MS, self._all_done)
            for host in self.everybody:
                host.retire()
            CopierHost(world, self.referee).copy_to_the_end()
        world.stats["virtual ms"] = world.mono_ms
        world.stats["steps"] = world.steps

    def _clear_up(self) -> None:
        self.world.clear_up()
        self.world.note("the sky clears")
        for host in self.everybody:
            host.senses.clear()
            if host.loop is not None:
                host.loop.fuse = -1

    def _take_snapshots(self) -> None:
        """Some process, alive or not, has its folders kept; then the log is trimmed."""
        self.world.random.choice(self.folding).disk.take_snapshots()
        self.world.vault.trim({host.role for host in self.folding})

    # Trouble

    def _trouble(self) -> None:
        """Plan who is struck when."""
        world, random, weather = self.world, self.world.random, self.weather
        for victims, every_ms in (
            (self.hosts, weather.process_trouble_ms),
            (self.workers, weather.worker_trouble_ms),
            (self.orchestrators, weather.orchestrator_trouble_ms),
        ):
            for at_ms in world.moments(every_ms):
                victim = random.choice(victims)
                world.after(at_ms, lambda victim=victim: self._strike(victim))

    def _strike(self, victim: Host) -> None:
        world, random = self.world, self.world.random
        kinds = ["crash", "fuse", "pause", "cut", "blind", "deaf", "leave", "clock", "trim"]
        if victim in self.workers:
            kinds += ["replace", "crash", "replace"]
        elif victim in self.orchestrators:
            kinds += ["usurp", "usurp"]
        kind = random.choice(kinds)
        world.stats[f"struck {kind}"] += 1
        until_ms = world.mono_ms + random.choice((1_500, 5_000, 18_000))
        match kind:
            case "crash":
                victim.crash()
            case "fuse":
                victim.fuse()
            case "pause":
                victim.pause(random.choice((600, 4_000, 12_000)))
            case "cut":
                world.note(f"{victim.name} is cut off until {until_ms}")
                victim.senses.cut_until_ms = until_ms
                world.last_fault_ms = max(world.last_fault_ms, until_ms)
            case "blind":
                victim.senses.blind_until_ms = until_ms
            case "deaf":
                victim.senses.deaf_until_ms = until_ms
            case "leave":
                victim.leave()
            case "clock":
                victim.step_clock()
            case "trim":
                self._trim_hints()
            case "usurp":
                assert isinstance(victim, OrchestratorHost)
                victim.usurp()
            case _:
                victim.replace(random.choice((2_000, 8_000, 16_000)) if random.random() < 0.95 else 150_000)

    def _trim_hints(self) -> None:
        """The log's retention takes all hints: whoever was not at their end has missed them."""
        names, topics = self.world.names, self.world.topics
        for topic in (*names.work_topics, names.signals, names.workers):
            for number in range(topics.specs[topic].partitions):
                topics.truncate(topic, number, topics.bounds(topic, number).end)

    # Looking

    def _look(self) -> None:
        """Now and then: a lease whose holder is gone does not last."""
        world = self.world
        world.after(1_000, self._look)
        since_ms = 0 if self.weather.only_workers_fail else self._clear_ms
        if not since_ms and not self.weather.only_workers_fail:
            return
        died_ms = {name: ms for worker in self.workers for name, ms in worker.died_ms.items()}
        lasts_ms = 2 * max(worker.lease_ms for worker in self.workers) + ALREADY_ENDED_MS
        for key, book in self.referee.books.items():
            grant = self.referee.grants.get(book.lease)
            ended_ms = died_ms.get(grant.incarnation) if grant is not None else None
            if grant is None or ended_ms is None:
                continue
            gone_ms = world.mono_ms - max(
                ended_ms, grant.granted_ms, since_ms + (10_000 if since_ms else 0), world.last_takeover_ms
            )
            world.require(
                gone_ms < lasts_ms,
                lambda key=key, grant=grant: f"the lease of {key} outlives its holder {grant.worker} by far",
            )

    def _all_done(self) -> bool:
        # Asking is dear, and a second does not matter.
        if self.world.steps - self._asked < 256:
            return False
        self._asked = self.world.steps
        return not self._unfinished()

    _asked = 0

    def _unfinished(self) -> list[str]:
        found = self.referee.unfinished()
        found += [f"{host.name} has not sent {job}" for host in self.producers for job in host.unsent()]
        if found:
            return found
        for number, fold in enumerate(self.referee.folds):
            end = self.world.topics.bounds(self.world.names.jobs, number).end
            assert fold is not None
            for host in self.readers:
                at = -1 if host.reads is None else host.reads.offsets.get(number, -1)
                if at < end:
                    found.append(f"{host.name} is at {at} of {end} in {number}")
        found += [f"{host.name} does not run" for host in (*self.orchestrators, *self.apis) if not host.alive]
        if self.upgrader is not None:
            found += self.upgrader.unfinished(self.referee)
        if self.bulk is not None:
            found += self.bulk.unfinished()
        return found or self.witness.still_running()

    # At the end

    def _reckon(self) -> None:
        world = self.world
        left = self._unfinished()
        world.require(not left, lambda: f"not at its end after {world.mono_ms} ms: " + "; ".join(left[:10]))
        for host in self.orchestrators:
            self._reckon_orchestrator(host)
        for host in self.readers:
            self._reckon_reads(host)
        for host in self.producers:
            for job in host.told:
                key = f"default/{job}"
                known = key in self.referee.jobs or key in world.forgotten or self.referee.turned_away(key)
                world.require(known, f"{job} was acknowledged and is lost")
        if self.weather.calm and not (self.weather.verbs or self.weather.operations_ms):
            self._reckon_calm()
        if self.bulk is not None:
            self.bulk.reckon(self.referee, self._result_of)
        for job in self.referee.jobs.values():
            world.stats[f"jobs {job.state}"] += 1

    def _result_of(self, job: str) -> bytes:
        """What a reader shows as result."""
        reads = self.readers[0].reads
        assert reads is not None
        view = reads._parts[partition_of(job, self.world.names.partitions)].queries.view(f"default/{job}")
        assert view is not None
        return bytes(view.result)

    def _reckon_orchestrator(self, host: OrchestratorHost) -> None:
        world = self.world
        if host.service is None or not hasattr(host.service, "machine"):
            return
        for one in host.service.machine.partitions.values():
            one.commit()
            self.referee.compare(one.number, one.store.committed_offset, one.store.digest, host.name)
            checks.check_rows(world, one)
            if one.role == "leading":
                checks.check_backlog(world, one)

    def _reckon_reads(self, host: NodeHost | ProjectionHost) -> None:
        world, reads = self.world, host.reads
        assert reads is not None
        for part in reads._parts.values():
            store = part.store
            self.referee.compare(store.partition, store.committed_offset, store.digest, host.name)
            world.require(store.recompute_digest() == store.digest, f"{host.name} has damaged rows")
            checks.check_views(world, part, host.name)
            for key, job in store.committed_jobs():
                world.require(job.state in TERMINAL, f"{host.name} has {key} as {job.state}")
                shown = part.queries.view(key)
                self._reckon_view(host.name, key, shown)
                if not self.weather.upgrade_ms:
                    # Views know the failures of this program, and not those that the next one brings.
                    self._reckon_replay(host.name, shown, part.queries.view_as_of(key, None, MAX_PACKED))
            for key, wanted in self.referee.history.items():
                if key and partition_of(key.partition("/")[2], world.names.partitions) == store.partition:
                    self._reckon_history(host.name, key, part.queries.history(key, 1_000, ""), wanted)
                    if key not in self.referee.jobs:
                        gone = part.queries.view(key) is None
                        world.require(gone, f"{host.name} shows {key}, which was forgotten")

    def _reckon_replay(self, who: str, shown: JobView | None, replayed: JobView | None) -> None:
        """A job as it was at its last line is the job as it is."""
        one, other = msgspec.json.encode(shown), msgspec.json.encode(replayed)
        self.world.require(one == other, lambda: f"{who} shows {one!r}, which was {other!r} in the end")

    def _reckon_history(self, who: str, key: str, page: HistoryPage | None, wanted: list[str]) -> None:
        """All accepted lines of a job, of those that were forgotten as well."""
        items = [] if page is None else page.items
        ids = [msgspec.json.decode(item.event)["id"] for item in items if item.outcome == "applied"]
        self.world.require(ids == wanted, lambda: f"{who}: history of {key}: {ids}, not {wanted}")

    def _reckon_view(self, who: str, key: str, view: JobView | None) -> None:
        """What is shown of a job is what the log says of it."""
        job, book = self.referee.jobs[key], self.referee.books[key]
        shown = (
            None if view is None else (view.state, view.attempt, bytes(view.payload), bytes(view.checkpoint))
        )
        wanted = (job.state, job.attempt, book.payload, book.checkpoint)
        self.world.require(shown == wanted, lambda: f"{who} shows {key} as {shown}, and it is {wanted}")
        if view is not None and job.state == "succeeded" and job.job_type != OPERATION:
            self.world.require(
                bytes(view.result) == b'"done"', f"{who} shows {view.result!r} as result of {key}"
            )

    def _reckon_calm(self) -> None:
        """Nothing went wrong, so nothing may have been ended or done over."""
        count = self.world.stats["LeaseExpired applied"]
        self.world.require(not count, f"{count} leases ran out in fair weather")
        for job_id, wanted in self.expected.items():
            key = f"default/{job_id}"
            job = self.referee.jobs.get(key)
            if job is None and (key in self.world.forgotten or self.referee.turned_away(key)):
                continue
            if job is not None and job.error_code == "replaced":
                continue
            self.world.require(
                job is not None and job.state in wanted,
                lambda job=job, job_id=job_id, wanted=wanted: (
                    f"{job_id} is {job.state if job else 'lost'}, and should be {' or '.join(wanted)}"
                ),
            )


def simulate_whole(seed: int, weather: Weather | None = None) -> Counter[str]:
    """Run one seed; what happened, by name."""
    run = WholeRun(seed, weather)
    run.play()
    return run.world.stats
