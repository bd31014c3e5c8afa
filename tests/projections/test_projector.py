from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from penstock.log.port import Record
from penstock.projections.port import JobsQuery
from penstock.projections.rows import KEPT_REFUSED
from penstock.projections.views import SHOWN_ERRORS
from penstock.schemas import events as ev
from penstock.schemas.ids import job_key
from penstock.schemas.position import Position, unpack
from tests.projections.model import Model, OnePartition
from tests.state.strategies import cuts, ops
from tests.state.writing import OPS, QUEUES, TOPIC, TYPES, Op, Writer

STATES = ("", "ready", "active", "retrying", "succeeded", "dead", "cancelled")


def fold_in_cuts(records: list[Record], commit_after: list[int]) -> OnePartition:
    one = OnePartition()
    left, lengths = 0, iter(commit_after * (len(records) + 1))
    for record in records:
        if left == 0:
            one.projector.commit()
            left = next(lengths)
        one.projector.fold(record)
        left -= 1
    one.projector.commit()
    return one


@given(ops, cuts)
def test_lists_and_counts_are_those_of_a_scan_of_all(played: list[Op], commit_after: list[int]) -> None:
    records = Writer().play(played)
    model, one = Model(records), fold_in_cuts(records, commit_after)
    for state, queue, job_type in product(STATES, ("", *QUEUES), ("", *TYPES)):
        query = JobsQuery(state=state, queue=queue, type=job_type, limit=1_000)
        page = one.reads.list_jobs(query)
        assert [job.id for job in page.items] == model.listed(state, queue, job_type)
        assert page.total == len(page.items)
    counted = {(row.state, row.queue, row.pool, row.type): row.jobs for row in one.reads.counts("default")}
    assert counted == model.counts()
    reopened = one.reopened()
    assert reopened.reads.counts("default") == one.reads.counts("default")
    assert reopened.reads.list_jobs(JobsQuery(limit=1_000)) == one.reads.list_jobs(JobsQuery(limit=1_000))


@given(ops, st.integers(1, 3), st.sampled_from(STATES))
def test_pages_joined_are_the_whole_list(played: list[Op], limit: int, state: str) -> None:
    records = Writer().play(played)
    one = OnePartition()
    one.fold(records)
    found: list[str] = []
    cursor = ""
    while True:
        page = one.reads.list_jobs(JobsQuery(state=state, limit=limit, cursor=cursor))
        assert len(page.items) <= limit
        found.extend(job.id for job in page.items)
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert found == Model(records).listed(state)


@given(ops, ops)
def test_a_cursor_stays_good_while_jobs_change(before: list[Op], after: list[Op]) -> None:
    """Jobs that are there all the time are each listed once, in order, whatever happens between two pages."""
    writer, one = Writer(), OnePartition()
    one.fold(writer.play(before))
    first = one.reads.list_jobs(JobsQuery(limit=1))
    stays = {job.id: job.created_at for job in one.reads.list_jobs(JobsQuery(limit=1_000)).items}
    writer.time_ms += 1
    one.fold(writer.play(after))
    now = {job.id: job.created_at for job in one.reads.list_jobs(JobsQuery(limit=1_000)).items}
    if first.next_cursor is None:
        return
    rest = one.reads.list_jobs(JobsQuery(limit=1_000, cursor=first.next_cursor)).items
    expected = [job_id for job_id, created in stays.items() if now.get(job_id) == created]
    shown = [job.id for job in [*first.items, *rest]]
    assert [job_id for job_id in shown if job_id in expected] == [
        job_id for job_id in stays if job_id in expected
    ]


@given(ops, cuts)
def test_history_holds_every_accepted_line_and_the_last_refused(
    played: list[Op], commit_after: list[int]
) -> None:
    records = Writer().play(played)
    model, one = Model(records), fold_in_cuts(records, commit_after)
    for job_id in (f"job-{number}" for number in range(5)):
        page = one.reads.history("default", job_id, 1_000, "")
        accepted = model.accepted(job_id)
        if page is None:
            assert accepted == []
            continue
        shown = [item for item in page.items if item.outcome == "applied"]
        assert [(item.position, bytes(item.event)) for item in shown] == [
            (str(unpack(0, line.position)), line.line) for line in accepted
        ]
        assert len(page.items) - len(shown) == min(page.refused, KEPT_REFUSED)
        assert [item.position for item in page.items] == [
            item.position for item in sorted(page.items, key=lambda item: int(item.position.split(":")[1]))
        ]


@given(ops, cuts)
def test_what_was_refused_of_a_known_job_is_counted(played: list[Op], commit_after: list[int]) -> None:
    records = Writer().play(played)
    one = fold_in_cuts(records, commit_after)
    state = one.store.state
    pages = [one.reads.history("default", f"job-{number}", 1_000, "") for number in range(5)]
    assert sum(page.refused for page in pages if page is not None) <= state.refused - state.unknown_jobs
    assert len(one.reads.quarantined(1_000, "")[0]) == state.quarantined


@given(ops, cuts)
def test_views_do_not_depend_on_when_they_are_committed(played: list[Op], commit_after: list[int]) -> None:
    records = Writer().play(played)
    one, other = fold_in_cuts(records, commit_after), fold_in_cuts(records, [1])
    for number in range(5):
        job_id = f"job-{number}"
        assert one.reads.job("default", job_id) == other.reads.job("default", job_id)
        assert one.reads.history("default", job_id, 1_000, "") == other.reads.history(
            "default", job_id, 1_000, ""
        )
    assert one.reads.quarantined(1_000, "") == other.reads.quarantined(1_000, "")


@given(ops)
def test_of_a_forgotten_job_only_its_history_is_left(played: list[Op]) -> None:
    records = Writer().play(played)
    model, one = Model(records), OnePartition()
    one.fold(records, 4)
    for family in ("index", "bodies", "errors"):
        for key, _ in one.kv.scan(family):
            job_id = (
                key[12:].decode()
                if family == "index"
                else key.split(b"\0")[0].decode().removeprefix("default/")
            )
            assert job_key("default", job_id) in model.jobs, family
    assert sum(1 for _ in one.kv.scan("index")) == len(model.jobs)


def test_all_ops_are_played() -> None:
    for name in OPS:
        assert hasattr(Writer, f"_{name}")


def test_a_flood_of_refused_lines_leaves_a_count_and_the_last_twenty() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a")
    for _ in range(3):
        for _ in range(15):
            writer.enqueue("a")
        writer.end_record()
    one.fold(writer.records)
    page = one.reads.history("default", "a", 1_000, "")
    assert page is not None
    assert (page.refused, len(page.items)) == (45, 1 + KEPT_REFUSED)
    assert [item.position for item in page.items[1:6]] == [f"0:2:{line}" for line in range(10, 15)]
    assert page.items[-1].position == "0:3:14"
    assert page.items[-1].outcome == "duplicate"
    assert sum(1 for _ in one.kv.scan("refused")) == 1 + KEPT_REFUSED


def test_history_comes_in_pages_that_cut_through_commits() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a")
    lease = writer.lease("a")
    for number in range(7):
        writer.write(ev.Progressed(id=f"p{number}", job="a", lease=lease, seq=number + 1))
        writer.write(ev.Progressed(id=f"p{number}", job="a", lease=lease, seq=number + 1))
    writer.end_record()
    one.fold(writer.records)
    whole = one.reads.history("default", "a", 1_000, "")
    assert whole is not None
    for limit in (1, 2, 5):
        items, cursor = list(whole.items[:0]), ""
        while True:
            page = one.reads.history("default", "a", limit, cursor)
            assert page is not None
            assert len(page.items) <= limit
            items.extend(page.items)
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert items == whole.items


def test_the_last_errors_are_shown_with_their_attempts() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a", max_attempts=100, expires_at=0)
    for number in range(SHOWN_ERRORS + 3):
        writer.fail("a", f"e{number}", details=b'{"n":%d}' % number)
    lease = writer.lease("a")
    writer.write(ev.LeaseExpired(id="x", job="a", epoch=0, lease=lease, reason="timeout"))
    writer.end_record()
    one.fold(writer.records, 3)
    view = one.reads.job("default", "a")
    assert view is not None
    assert [error.code for error in view.errors] == [f"e{number}" for number in range(4, 23)] + ["timeout"]
    assert view.errors[0].attempt == 5
    assert bytes(view.errors[0].details) == b'{"n":4}'
    assert view.errors[-1].message == "the attempt ran longer than timeout_ms"


def test_a_refunded_lease_is_no_error_and_an_expired_job_is_one() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a", expires_at=writer.time_ms + 10)
    lease = writer.lease("a")
    writer.write(ev.LeaseExpired(id="x", job="a", epoch=0, lease=lease, reason="superseded", refund=True))
    writer.end_record()
    job = writer.job("a")
    assert job is not None
    writer.write(ev.Expired(id="late", job="a", epoch=0, seen=job.seen))
    writer.end_record()
    one.fold(writer.records)
    view = one.reads.job("default", "a")
    assert view is not None
    assert [(error.code, error.attempt) for error in view.errors] == [("expired", 0)]


def test_a_new_life_has_none_of_the_old_ones_failures_or_bodies() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a", max_attempts=1, payload=Raw(b"[1]"))
    writer.fail("a")
    writer.forget("a")
    writer.enqueue("a")
    writer.end_record()
    one.fold(writer.records, 100)
    view = one.reads.job("default", "a")
    assert view is not None
    assert (view.state, view.errors, bytes(view.payload)) == ("ready", [], b"null")
    page = one.reads.history("default", "a", 1_000, "")
    assert page is not None
    assert [item.type for item in page.items] == ["Enqueued", "Leased", "Failed", "Forgotten", "Enqueued"]


def test_lines_about_nobody_leave_nothing() -> None:
    writer, one = Writer(), OnePartition()
    writer.play([("stranger", 1, 0)] * 50)
    one.fold(writer.records)
    assert one.store.state.unknown_jobs == 50
    assert list(one.kv.scan("refused")) == []
    assert one.reads.history("default", "job-1-unknown", 10, "") is None


def test_a_zombie_leaders_line_stands_in_the_history_of_its_job() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a")
    writer.end_record()
    writer.announce()
    writer.write(ev.Leased(id="old", job="a", epoch=0, worker="w", attempt=1, lease_ms=1, seen=1 << 15))
    writer.end_record()
    one.fold(writer.records)
    page = one.reads.history("default", "a", 10, "")
    assert page is not None
    assert [(item.type, item.outcome) for item in page.items] == [
        ("Enqueued", "applied"),
        ("Leased", "stale"),
    ]
    assert page.items[1].reason == "written by one that does not lead"


def test_quarantined_lines_are_kept_with_their_head() -> None:
    one = OnePartition()
    long_line = b"\xff" + b"x" * 10_000
    one.fold([Record(TOPIC, 0, 0, 5_000, True, None, b"{}\n" + long_line)])
    [newest, oldest] = one.reads.quarantined(10, "")[0]
    assert (newest.position, newest.reason, newest.size_bytes) == ("0:0:1", "not_utf8", 10_001)
    assert len(newest.head) == 5_464
    assert oldest.at == "1970-01-01T00:00:05.000Z"
    page, cursor = one.reads.quarantined(1, "")
    assert page == [newest]
    assert one.reads.quarantined(1, cursor or "") == ([oldest], None)


def test_a_repeated_report_is_a_duplicate_where_it_stands_and_applied_where_it_first_stood() -> None:
    writer, one = Writer(), OnePartition()
    writer.enqueue("a")
    writer.run("a")
    writer.play([("repeat", 0, 0), ("end_record", 0, 0), ("repeat", 0, 0)])
    one.fold(writer.records)
    assert len(writer.records) == 4
    event_id = "lease-2.s"
    verdicts = one.reads.verdicts(
        [
            (Position(0, offset, line), "default", "a", event_id)
            for offset, line in ((2, 1), (2, 2), (3, 0), (3, 9))
        ]
    )
    assert [verdict.outcome for verdict in verdicts] == ["applied", "duplicate", "duplicate", "applied"]


def test_groups_that_are_empty_do_not_pile_up() -> None:
    """Job types made up by a stranger come and go; what is left is counted and listed as ever."""
    writer, one = Writer(), OnePartition()
    names = [f"j{number}" for number in range(700)]
    for number, name in enumerate(names):
        writer.enqueue(name, job_type=f"type-{number}")
    writer.end_record()
    for name in names[1:]:
        writer.write(ev.CancelRequested(id=f"c-{name}", job=name, of=f"enq.{name}", not_after=writer.time_ms))
    writer.end_record()
    for name in names[1:]:
        job = writer.job(name)
        assert job is not None
        writer.write(ev.Forgotten(id=f"f-{name}", job=name, epoch=0, seen=job.seen))
    writer.time_ms += 3_600_000
    writer.end_record()
    one.fold(writer.records)
    assert len(one.projector.groups._groups) < 700  # pyright: ignore[reportPrivateUsage]  # its memory is not to be seen
    assert [(row.type, row.state, row.jobs) for row in one.reads.counts("default")] == [
        ("type-0", "ready", 1)
    ]
    again = one.reopened()
    writer.enqueue("new", job_type="type-5")
    writer.end_record()
    again.fold(writer.records[-1:])
    assert [job.id for job in again.reads.list_jobs(JobsQuery()).items] == ["new", "j0"]
