"""Rows in hand: which jobs are read again, and which are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from penstock.core import working
from penstock.core.partition import PartitionFold
from penstock.core.rows import job_row_key
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line


class Rows:
    """A fold over rows that counts what is read of them."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self.reads: Counter[str] = Counter()
        self.fold = PartitionFold(0, 1, self._read)
        self._offset = 0

    def _read(self, row: bytes) -> bytes | None:
        if row[:1] == b"j":
            self.reads[row.decode().removeprefix("jdefault/")] += 1
        return self.rows.get(row)

    def write(self, *events: ev.Event) -> None:
        outcomes = [
            one.outcome for one in self.fold.fold(self._offset, 1, True, bundle([*map(encode_line, events)]))
        ]
        assert outcomes == ["applied"] * len(events)
        self._offset += 1

    def take(self) -> None:
        self.rows.update(self.fold.take_changes().rows)


def enqueued(job: str) -> ev.Enqueued:
    return ev.Enqueued(job=job, job_type="t")


def test_a_job_that_was_asked_for_is_not_read_again_for_its_next_line() -> None:
    rows = Rows()
    rows.write(enqueued("j"))
    rows.take()
    # Enough of others, so that it is no longer in hand.
    fresh = Rows()
    fresh.rows = rows.rows
    job = fresh.fold.job("default/j")
    assert job is not None
    fresh.take()
    fresh.take()
    fresh.write(ev.CancelRequested(id="c", job="j", of=job.enqueued_id, not_after=10))
    assert fresh.reads["j"] == 1


def test_jobs_that_have_ended_leave_first_and_then_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "RECENT_JOBS", 3)
    rows = Rows()
    rows.write(*(enqueued(f"j{number}") for number in range(5)))
    rows.write(ev.CancelRequested(id="c", job="j4", of="j4", not_after=10))
    rows.take()
    rows.reads.clear()
    for number in range(5):
        rows.fold.job(f"default/j{number}")
    assert sorted(rows.reads) == ["j0", "j4"]


def test_many_jobs_are_read_together_once_and_only_where_they_are_not_in_hand() -> None:
    rows = Rows()
    names = [f"j{number}" for number in range(working.FEWEST_TOGETHER + 1)]
    rows.write(*map(enqueued, names))
    rows.take()
    asked: list[list[bytes]] = []

    def read_many(wanted: Sequence[bytes]) -> list[bytes | None]:
        asked.append(list(wanted))
        return [rows.rows.get(row) for row in wanted]

    fold = PartitionFold(0, 1, rows.rows.get, read_many=read_many)
    fold.job("default/j0")
    fold.prepare([f"default/{name}" for name in (*reversed(names), "j0")])
    assert asked == [[job_row_key(f"default/{name}") for name in names[1:]]]
    fold.prepare([f"default/{name}" for name in names])
    fold.prepare(["default/other"])
    assert len(asked) == 1
    assert [fold.job(f"default/{name}") for name in names] == [
        rows.fold.job(f"default/{name}") for name in names
    ]
