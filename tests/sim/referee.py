"""Watches the log and nothing else: a second opinion on what every line may do, told in the plainest terms.

The fold under test decides; the referee keeps its own small books from what was accepted (who leads, who holds which
lease) and cries out when the fold accepts what those books forbid, or changes a job by a line it refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from msgspec import Struct

from penstock.core import job as job_rules
from penstock.core.job import TERMINAL, WAITING, Job
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rules import RULES, RulesTable
from penstock.log.port import Record
from penstock.orchestrator.outputs import Outputs
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import LeaseGone
from penstock.schemas.position import parse
from tests.sim.world import World

HOLDERS = (ev.Progressed, ev.Succeeded, ev.Failed, ev.Returned, ev.Snoozed)
ENDS = (ev.Succeeded, ev.Failed, ev.Returned, ev.Snoozed, ev.LeaseExpired, ev.Cancelled)
OF_WAITING = (ev.Held, ev.Unheld, ev.Edited)

# Not asked of the events themselves: this is a second opinion.
LEADERS = (
    ev.Due, ev.Expired, ev.Leased, ev.LeaseExpired, ev.Cancelled, ev.DeadLettered, ev.Forgotten, ev.Forwarded,
)  # fmt: skip


class Book(Struct):
    """What the referee remembers of a job."""

    lease: str = ""
    fence: int = -1
    leases: int = 0
    seq: int = 0
    cancel: bool = False
    dead_since: int = -1
    checkpoint: bytes = b"null"
    payload: bytes = b"null"


class Grant(NamedTuple):
    """A lease as the log has it. Times are virtual ms."""

    worker: str
    incarnation: str
    fence: int
    attempt: int
    job: str
    granted_ms: int
    checkpoint: bytes
    """The last one that was accepted before it; ``null`` if there is none."""
    payload: bytes


def plain_notes(value: bytes) -> set[tuple[int, int]]:
    """Where refused lines stood, from a record of the quarantine topic that says nothing else."""
    number, position = map(int, value.split(b":"))
    return {(number, position)}


class Referee:
    """Folds every record the moment it stands on the log, one record a batch.

    ``read_notes`` reads a record of the quarantine topic; ``rules`` are those of the newest program.
    """

    def __init__(
        self,
        world: World,
        read_notes: Callable[[bytes], set[tuple[int, int]]] = plain_notes,
        rules: RulesTable = RULES,
    ) -> None:
        self.world = world
        self._read_notes = read_notes
        self.grants: dict[str, Grant] = {}
        self.history: dict[str, list[str]] = defaultdict(list)
        """Ids of the accepted lines of each job, in order."""
        count = world.names.partitions
        self._rows: list[dict[bytes, bytes]] = [{} for _ in range(count)]
        self.folds = [
            PartitionFold(number, count, self._rows[number].get, rules=rules) for number in range(count)
        ]
        self.digests: dict[tuple[int, int], str] = {}
        self.books: dict[str, Book] = defaultdict(Book)
        self.periods: dict[str, int] = {}
        """Of jobs with a unique key, ms."""
        self.holders: dict[tuple[str, str], str] = {}
        """Who took each unique key last, by tenant and key."""
        self.running: dict[tuple[str, str], str] = {}
        """Which job was leased last of those with a concurrency key, by tenant and key."""
        self.jobs: dict[str, Job] = {}
        self.epochs = [-1] * count
        self.lease_ids: set[str] = set()
        self.verbs: set[tuple[str, str]] = set()
        self.misrouted: dict[str, int] = {}
        """Origin of each misrouted line, and how many copies of it were taken in its partition."""
        self.arrived: set[str] = set()
        """Origins of misrouted lines of which a copy came to its partition."""
        self.quarantined: set[tuple[int, int]] = set()
        self.enqueued: set[str] = set()
        """Keys of jobs that somebody put on the log, in whatever partition."""
        self._turned_away: dict[str, int] = {}
        """Keys of jobs that did not begin, for their unique key was held, and until when they must not. Unix ms."""
        world.on_job_record = self.take

    def take(self, record: Record) -> None:
        number, fold = record.partition, self.folds[record.partition]
        for folded in fold.fold(record.offset, record.time_ms, record.append_time, record.value):
            self._line(number, folded)
        changes = fold.take_changes()
        for row, data in changes.rows:
            if data is None:
                self._rows[number].pop(row, None)
            else:
                self._rows[number][row] = data
        self.digests[number, record.offset + 1] = changes.digest.to_bytes(32, "big").hex()

    def compare(self, number: int, offset: int, digest: str, who: str) -> None:
        """A folder's digest of everything below ``offset`` must be this one's."""
        if offset:
            self.world.require(
                self.digests[number, offset] == digest,
                f"{who} has another digest of partition {number} at {offset}",
            )

    def check_outputs(self, who: str, out: Outputs) -> None:
        """Hints are not truth, but a leader, however stale, must not tell what was never so."""
        for deliveries in out.deliveries.values():
            for delivery in deliveries:
                self.world.require(
                    delivery.lease in self.lease_ids,
                    f"{who} delivers {delivery.lease}, which nobody was granted",
                )
        for signals in out.signals.values():
            for signal in signals:
                if isinstance(signal, LeaseGone):
                    self.world.require(
                        self.books[f"{signal.tenant}/{signal.job}"].lease != signal.lease,
                        f"{who} tells {signal.worker} that {signal.lease} is gone, which is valid",
                    )

    def _line(self, number: int, folded: Folded) -> None:
        world, event = self.world, folded.event
        world.stats[f"{type(event).__name__ if event else 'line'} {folded.outcome}"] += 1
        if folded.outcome != "duplicate":
            world.note(f"{number}:{folded.position >> 15} {_told(folded)}")
        if event is None:
            self.quarantined.add((number, folded.position))
            return
        self._forwarded_copy(number, folded, event)
        if folded.outcome == "misrouted":
            self.misrouted[f"{number}:{folded.position >> 15}:{folded.position & 32767}"] = 0
        if isinstance(event, ev.Enqueued) and folded.outcome in ("applied", "misrouted"):
            self.enqueued.add(f"{event.tenant}/{event.job}")
        if folded.outcome == "applied":
            if folded.also is not None:
                self._replaced(folded, folded.also)
            self._accepted(number, folded, event)
        else:
            self._refused(folded)
            if isinstance(event, ev.Enqueued) and folded.before is None and folded.outcome != "misrouted":
                self.enqueued.discard(folded.key)
                if folded.outcome == "conflict":
                    self._turned_away.setdefault(folded.key, folded.time_ms + job_rules.MAX_VERB_AGE_MS)

    def _forwarded_copy(self, number: int, folded: Folded, event: ev.AnyEvent) -> None:
        if not event.origin or folded.reason == "already forwarded":
            return
        source = parse(event.origin)
        count = self.misrouted.get(event.origin)
        self.world.require(count is not None, f"{event.origin} was forwarded and never misrouted")
        self.world.require(
            partition_of(event.job, len(self.folds)) == number, f"{source} was forwarded to {number}"
        )
        self.arrived.add(event.origin)
        if not folded.key:
            # Its rules are not in force there; by the next copy they may be.
            return
        self.misrouted[event.origin] = (count or 0) + 1
        self.world.require(self.misrouted[event.origin] == 1, f"{event.origin} was taken twice")

    def _refused(self, folded: Folded) -> None:
        before, after = folded.before, folded.after
        if before is after or before is None:
            return
        # Only the memory of verbs may change by a line that was refused.
        same = after is not None and all(
            getattr(before, name) == getattr(after, name)
            for name in before.__struct_fields__
            if name != "verdicts"
        )
        self.world.require(same, lambda: f"a refused line changed a job: {_told(folded)}")

    def _accepted(self, number: int, folded: Folded, event: ev.AnyEvent) -> None:
        if isinstance(event, ev.LeaderAnnounced):
            self.world.require(
                event.supersedes == self.epochs[number],
                "an announcement superseded an epoch that is not the current one",
            )
            self.epochs[number] = folded.position
            return
        if isinstance(event, LEADERS):
            self.world.require(
                event.epoch == self.epochs[number] >= 0,
                lambda: f"a line of one that does not lead: {_told(folded)}",
            )
        if isinstance(event, ev.JobEvent):
            self._job(folded, event)

    def _job(self, folded: Folded, event: ev.AnyEvent) -> None:
        world, key, job = self.world, folded.key, folded.after
        book = self.books[key]
        self.history[key].append(event.id)
        told = partial(_saying, folded)
        if isinstance(event, ev.Forgotten):
            self._forgotten(folded, key)
            return
        world.require(job is not None, told("a job is gone that nobody forgot"))
        assert job is not None
        if isinstance(event, ev.Leased):
            world.require(not book.lease, told("two valid leases"))
            world.require(folded.position > book.fence, told("a fence went back"))
            world.require(event.id not in self.lease_ids, told("a lease id came twice"))
            world.require(
                event.seen == (folded.before.seen if folded.before else -1), told("a lease on an old state")
            )
            self.lease_ids.add(event.id)
            self.grants[event.id] = Grant(
                event.worker, event.incarnation, folded.position, event.attempt, key, world.mono_ms,
                book.checkpoint, book.payload,
            )  # fmt: skip
            book.lease, book.fence, book.seq = event.id, folded.position, 0
            book.leases += 1
            self._runs_alone(folded, job)
        elif isinstance(event, HOLDERS + ENDS):
            world.require(book.lease == event.lease, told("a stale lease had an effect"))
            if isinstance(event, ev.Progressed):
                world.require(event.seq > book.seq, told("progress went back"))
                book.seq = event.seq
                book.checkpoint = book.checkpoint if event.checkpoint is None else bytes(event.checkpoint)
                world.require(
                    job.seen == folded.before.seen if folded.before else False, told("progress moved seen")
                )
        elif isinstance(event, ev.Verb):
            # An operation's verbs have one id, one for each job.
            world.require((folded.key, event.id) not in self.verbs, told("a verb had its effect twice"))
            self.verbs.add((folded.key, event.id))
            self._verb(folded, event)
        if isinstance(event, ev.Enqueued):
            self._began(folded, event, book)
        elif isinstance(event, ev.CancelRequested):
            book.cancel = True
        elif isinstance(event, ev.RetryRequested):
            book.cancel = False
            book.dead_since = -1
        if isinstance(event, ENDS):
            book.lease = ""
            if book.cancel and not isinstance(event, ev.Succeeded):
                world.require(job.state == "cancelled", told("a pending cancel was passed over"))
            book.cancel = False
        elif book.cancel and job.state != "active":
            book.cancel = False
        known = self.jobs.get(key)
        world.require(
            (job.state == "active") == bool(book.lease), told("active without a lease, or the reverse")
        )
        world.require(0 <= job.attempt <= job.attempts_allowed, told("attempts out of bounds"))
        world.require(known is None or job.time_ms >= known.time_ms, told("a job's time ran backwards"))
        world.require(
            known is None
            or known.state not in TERMINAL
            or known.state == job.state
            or isinstance(event, ev.RetryRequested | ev.Deleted),
            told("a finished job began again"),
        )
        if job.state == "dead" and not job.dead_lettered:
            book.dead_since = world.mono_ms
        self.jobs[key] = job
        if job.unique_key and isinstance(event, ev.Enqueued | ev.RetryRequested):
            self._takes(folded, job)

    def _began(self, folded: Folded, event: ev.Enqueued, book: Book) -> None:
        book.payload, book.checkpoint = bytes(event.payload), b"null"
        if event.unique is not None:
            self.periods[folded.key] = event.unique.period_ms
            self.world.require(
                folded.time_ms > self._turned_away.get(folded.key, -1),
                _saying(folded, "what was refused began after all"),
            )

    def _runs_alone(self, folded: Folded, job: Job) -> None:
        if not job.concurrency_key:
            return
        name = (job.tenant, job.concurrency_key)
        before = self.running.get(name)
        if before is not None and before != job.key:
            told = _saying(folded, f"runs beside {before}, which has the same concurrency key")
            self.world.require(not self.books[before].lease, told)
            self.world.stats["turns passed on"] += 1
        self.running[name] = job.key

    def _takes(self, folded: Folded, job: Job) -> None:
        """A job that begins, or runs again, takes its key, if it holds it at all; nobody else may hold it then."""
        if not self._has_key(job, job.time_ms):
            return
        name = (job.tenant, job.unique_key)
        before = self.jobs.get(self.holders.get(name, ""))
        free = before is None or before.id == job.id or not self._has_key(before, job.time_ms)
        self.world.require(free, _saying(folded, "two jobs hold one key"))
        self.holders[name] = job.key
        self.world.stats["keys taken"] += 1

    def _has_key(self, job: Job, now_ms: int) -> bool:
        if job.unique_scope == "until_started":
            return job.state in WAITING and not self.books[job.key].leases
        if job.unique_scope == "period":
            return job.state != "deleted" and now_ms < job.created_at_ms + self.periods[job.key]
        return job.state not in TERMINAL

    def _replaced(self, folded: Folded, other: Folded) -> None:
        """A job that waited is cancelled by another that asked for its place, and for its key."""
        told, known, event = partial(_saying, folded), self.jobs[other.key], folded.event
        assert isinstance(event, ev.Enqueued)
        assert event.unique is not None
        self.world.stats["jobs replaced"] += 1
        self.world.require(event.unique.on_conflict == "replace", told("it did not ask to replace"))
        self.world.require(known.state in WAITING, told("what was replaced did not wait"))
        self.world.require(known.unique_key == event.unique.key, told("what was replaced had another key"))
        self.world.require(
            other.after is not None and other.after.state == "cancelled", told("what was replaced goes on")
        )
        if other.after is not None:
            self.jobs[other.key] = other.after
        self.periods[other.key] = -other.time_ms  # over, however far clocks step back
        self.history[other.key].append(event.id)

    def _verb(self, folded: Folded, event: ev.Verb) -> None:
        """Each verb does what it says, to a job of which that can be asked."""
        before, after, told = folded.before, folded.after, partial(_saying, folded)
        if before is None or after is None:
            self.world.require(False, told("a verb made a job, or took one away"))
            return
        if isinstance(event, OF_WAITING):
            held = isinstance(event, ev.Held), isinstance(event, ev.Unheld)
            self.world.require(before.state in WAITING and after.state in WAITING, told("it did not wait"))
            self.world.require(held != (True, False) or after.state == "held", told("it is not held"))
            self.world.require(held != (False, True) or after.state != "held", told("it is still held"))
            if held == (False, True):
                too_early = before.due_at_ms > after.time_ms and after.due_at_ms != before.due_at_ms
                self.world.require(not too_early, told("it forgot what it waited for"))
            self.world.require(before.attempt == after.attempt, told("an attempt was counted"))
        elif isinstance(event, ev.Deleted):
            self.world.require(before.state != "active", told("a running job was deleted"))
            self.world.require(after.state == "deleted", told("it is not deleted"))

    def _forgotten(self, folded: Folded, key: str) -> None:
        """Only what has ended, long enough ago by the log's own time, and owes nobody anything."""
        world, job = self.world, self.jobs.pop(key)
        told = partial(_saying, folded)
        world.require(job.state in TERMINAL, told("forgotten before its end"))
        world.require(job.state != "dead" or job.dead_lettered, told("forgotten without its dead letter"))
        age_ms = max(job.time_ms, folded.time_ms) - job.finished_at_ms
        world.require(age_ms >= world.weather.forget_ms > 0, told(f"forgotten after {age_ms} ms"))
        world.forgotten.add(key)
        world.stats[f"jobs {job.state}"] += 1

    # At the end

    def turned_away(self, key: str) -> bool:
        """Whether a job did not begin."""
        return key in self._turned_away

    def held(self) -> list[Job]:
        """Jobs that wait until somebody lets them go."""
        return [job for job in self.jobs.values() if job.state == "held"]

    def job_rows(self) -> dict[str, bytes]:
        """Rows of all jobs, by key."""
        return {
            row[1:].decode(): data for rows in self._rows for row, data in rows.items() if row[:1] == b"j"
        }

    def unfinished(self) -> list[str]:
        """What still stands open."""
        found = [f"{key} is {job.state}" for key, job in self.jobs.items() if job.state not in TERMINAL]
        if self.world.weather.forget_ms:
            found += [f"{key} is not forgotten" for key in self.jobs]
        known = self.jobs.keys() | self.world.forgotten
        found += [f"{key} is on no partition" for key in sorted(self.enqueued - known)]
        found += [
            f"{key} is dead and has no dead letter"
            for key, job in self.jobs.items()
            if job.state == "dead" and not job.dead_lettered
        ]
        found += [
            f"misrouted line {origin} never arrived"
            for origin in self.misrouted
            if origin not in self.arrived
        ]
        found += [
            f"partition {fold.partition} keeps {fold.state.misrouted} misrouted lines"
            for fold in self.folds
            if fold.state.misrouted
        ]
        noted: set[tuple[int, int]] = set()
        for record in self.world.topics.read(self.world.names.quarantine, 0, 0, 10**6):
            noted |= self._read_notes(record.value)
        found += [f"refused line {place} was not noted" for place in sorted(self.quarantined - noted)]
        return found


def _saying(folded: Folded, what: str) -> Callable[[], str]:
    """What is wrong with a line, spelled out only when it is needed."""
    return lambda: f"{what}: {_told(folded)}"


def _told(folded: Folded) -> str:
    event = folded.event
    if event is None:
        return f"refused line ({folded.reason})"
    words = [type(event).__name__, event.job, event.id[-14:], folded.outcome]
    if folded.outcome not in ("applied", "misrouted"):
        words.append(f"({folded.reason})")
    if folded.after is not None:
        words.append(f"-> {folded.after.state} {folded.after.attempt}/{folded.after.attempts_allowed}")
    return " ".join(words)
