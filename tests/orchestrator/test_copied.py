"""A partition that is a copy: led only once it is sealed, old jobs first, and old leases known for what they are."""

from __future__ import annotations

import pytest
from msgspec import Raw

from penstock.log.port import Headers, Record
from penstock.orchestrator import backlog
from penstock.orchestrator.backlog import Backlog
from penstock.orchestrator.machine import Inputs, OrchestratorMachine
from penstock.orchestrator.outputs import Now, Outputs
from penstock.orchestrator.rows import BACKLOG, READY, Lane
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, decode_line, encode_line
from penstock.schemas.copies import COPY_HEADER, CopiedPlace, encode_copied_from
from penstock.schemas.messages import Echo, Heartbeat, Holding, LeaseGone
from penstock.schemas.position import generation_of, ordinal, pack
from tests.orchestrator.desk import START_MS, memory_store

NOOP = Lane("default", 2, "default", "noop")
OLD_LEASE = f"7.{pack(9_999, 0)}.1"
"""Granted on the source, in an epoch at an offset that the copy has not reached."""


def enqueued(job: str) -> ev.Enqueued:
    return ev.Enqueued(id=f"enq.{job}", job=job, job_type="noop", payload=Raw(b"1"))


class Copy:
    """One partition of a copy of a log with several, and an orchestrator that follows it."""

    def __init__(self) -> None:
        self.store = memory_store()
        self.machine = OrchestratorMachine("o", "inc-o", [self.store], self.now(0), generation=1)
        self.machine.caught_up(0)
        self.offset = 0
        self.time_ms = 0

    @staticmethod
    def now(time_ms: int) -> Now:
        return Now(START_MS + time_ms, 10**7 + time_ms, START_MS + time_ms)

    def record(self, *events: ev.Event, headers: Headers = ()) -> Record:
        value = bundle([encode_line(event) for event in events])
        self.offset += 1
        return Record("jobs", 0, self.offset - 1, START_MS, True, None, value, headers)

    def copied(self, source: int, *events: ev.Event, first: int = 100) -> Record:
        """Lines that stood one record after the other, in a partition of the source."""
        places = [CopiedPlace(pack(first + n, 0), pack(first + n, 0), START_MS) for n in range(len(events))]
        return self.record(*events, headers=((COPY_HEADER, encode_copied_from("c", source, 1, 0, places)),))

    def seal(self) -> Record:
        return self.record(ev.CopySealed(id="seal", copy="c", generation=1))

    def step(self, *records: Record, beat: Heartbeat | None = None) -> Outputs:
        self.time_ms += 2_000
        reports: list[tuple[int, Heartbeat | Echo]] = [] if beat is None else [(0, beat)]
        return self.machine.step(Inputs(list(records), reports), self.now(self.time_ms))

    def lead(self) -> None:
        """Bring its announcement back to it."""
        out = self.step()
        [line] = out.lines[0]
        self.step(self.record(decode_line(line)))
        assert len(self.machine.leading) == 1


def test_it_is_not_led_before_it_is_sealed() -> None:
    copy = Copy()
    out = copy.step()
    assert (dict(out.lines), out.beats[-1].caught_up) == ({}, ())
    assert dict(copy.step(copy.copied(0, enqueued("a"))).lines) == {}
    out = copy.step(copy.seal())
    assert [type(decode_line(line)) for line in out.lines[0]] == [ev.LeaderAnnounced]
    assert copy.step().beats[-1].caught_up == (0,)


def test_a_log_of_its_own_never_leads_what_says_it_is_a_copy() -> None:
    copy = Copy()
    copy.machine = OrchestratorMachine("o", "inc-o", [copy.store], copy.now(0))
    copy.machine.caught_up(0)
    assert dict(copy.step(copy.copied(0, enqueued("a"))).lines) == {}


def test_the_epoch_is_of_this_log() -> None:
    copy = Copy()
    copy.step(copy.copied(0, enqueued("a")), copy.seal())
    copy.lead()
    [machine] = copy.machine.leading
    assert machine.epoch == copy.store.state.epoch == ordinal(1, pack(2, 0))


def test_jobs_of_one_place_in_two_partitions_do_not_push_each_other_out() -> None:
    copy = Copy()
    names = [f"{letter}{number}" for letter in "abc" for number in range(5)]
    for source, letter in enumerate("abc"):
        copy.step(copy.copied(source, *(enqueued(f"{letter}{number}") for number in range(5))))
    copy.step(copy.seal())
    copy.store.commit()
    assert len(list(copy.store.store.scan(BACKLOG, READY, b"s"))) == len(names)
    found = Backlog(copy.machine.partitions[0]._index, copy.store.commit, copy.store.job)
    found.load()
    taken = [job.id for _, _, job in found.take([NOOP], 100, lambda key: False)]
    # By place on the source, and among equals by name: as every other leader would have it.
    assert taken == sorted(names, key=lambda name: (name[1], name[0]))


def test_nor_where_the_window_ends_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "WINDOW", 4)
    monkeypatch.setattr(backlog, "REFILL_BELOW", 2)
    test_jobs_of_one_place_in_two_partitions_do_not_push_each_other_out()


def test_old_jobs_come_before_new_ones_although_their_offsets_were_higher() -> None:
    copy = Copy()
    copy.step(copy.copied(0, enqueued("old-1"), enqueued("old-2"), first=10**6), copy.seal())
    copy.step(copy.record(enqueued("new")))
    copy.store.commit()
    found = Backlog(copy.machine.partitions[0]._index, copy.store.commit, copy.store.job)
    found.load()
    assert [job.id for _, _, job in found.take([NOOP], 9, lambda key: False)] == ["old-1", "old-2", "new"]


def test_who_holds_a_lease_of_the_source_is_told_when_it_has_ended() -> None:
    copy = Copy()
    leased = ev.Leased(
        id=OLD_LEASE,
        job="a",
        worker="w",
        incarnation="i",
        attempt=1,
        lease_ms=30_000,
        seen=pack(100, 0),
        epoch=5,
    )
    copy.step(copy.copied(3, enqueued("a"), leased), copy.seal())
    copy.lead()
    job = copy.store.job("default/a")
    assert job is not None
    assert (job.state, job.lease, generation_of(job.leased_at)) == ("active", OLD_LEASE, 0)

    def beat(seq: int) -> Heartbeat:
        holding = (Holding(0, "default/a", OLD_LEASE, 5),)
        return Heartbeat(worker="w", incarnation="i", seq=seq, holding=holding)

    # Still its holder: nothing is wrong, and it may finish.
    assert _gone(copy.step(beat=beat(1))) == []
    copy.step(copy.record(ev.Succeeded(id=f"{OLD_LEASE}.s", job="a", lease=OLD_LEASE)))
    assert _gone(copy.step(beat=beat(2))) == [OLD_LEASE]


def test_the_fence_of_a_new_lease_is_above_that_of_an_old_one() -> None:
    copy = Copy()
    leased = ev.Leased(id=OLD_LEASE, job="a", worker="w", attempt=1, lease_ms=1, seen=pack(10**6, 0), epoch=5)
    back = ev.Returned(id="back", job="a", lease=OLD_LEASE)
    copy.step(copy.copied(3, enqueued("a"), leased, back, first=10**6), copy.seal())
    copy.lead()
    beat = Heartbeat(worker="w", seq=1, types=("noop",), credits={"inc-o": 1}, route=1)
    [line] = [line for line in copy.step(beat=beat).lines[0] if isinstance(decode_line(line), ev.Leased)]
    out = copy.step(copy.record(decode_line(line)))
    [[delivery]] = out.deliveries.values()
    assert int(delivery.fence) > pack(10**6 + 1, 0)
    job = copy.store.job("default/a")
    assert job is not None
    assert delivery.fence == str(job.leased_at)


def _gone(out: Outputs) -> list[str]:
    return [
        signal.lease for route in out.signals.values() for signal in route if isinstance(signal, LeaseGone)
    ]
