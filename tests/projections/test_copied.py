"""The read model of a copied log: when things happened is as it was, and where lines stand is where they stand now."""

from __future__ import annotations

import pytest

from penstock.log.port import Headers, Record
from penstock.projections.rows import HISTORY, decode_lines, encode
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.copies import COPY_HEADER, CopiedPlace, encode_copied_from
from penstock.schemas.errors import ReadModelUnavailable
from penstock.schemas.ids import job_key
from penstock.schemas.position import pack
from tests.projections.model import OnePartition
from tests.state.writing import TOPIC

THEN_MS, NOW_MS = 1_600_000_000_000, 1_700_000_000_000
KEY = job_key("default", "a")


def record(offset: int, *events: ev.Event, headers: Headers = ()) -> Record:
    return Record(TOPIC, 0, offset, NOW_MS, True, None, bundle([encode_line(one) for one in events]), headers)


def test_a_copied_job() -> None:
    one = OnePartition()
    begun = ev.Enqueued(id="e", job="a", job_type="t")
    cancel = ev.CancelRequested(id="c", job="a", of="e", not_after=THEN_MS + 5_000)
    late = ev.CancelRequested(id="late", job="a", of="e", not_after=THEN_MS - 1)
    places = [CopiedPlace(pack(n, 0), pack(n, 0), THEN_MS + n) for n in (700, 800, 900)]
    header = encode_copied_from("copy", 3, 1, 0, places)
    one.fold([record(0, begun, cancel, late, headers=((COPY_HEADER, header),))])
    one.fold([record(1, ev.CopySealed(id="seal", copy="copy", generation=1))])

    view = one.queries.view(KEY)
    assert view is not None
    assert (view.state, view.created_at, view.finished_at) == (
        "cancelled",
        "2020-09-13T12:26:40.700Z",
        "2020-09-13T12:26:40.800Z",
    )
    # Nothing has happened to it since: as its position the seal is given, which a reader can wait for.
    assert view.position == "0:1:0"
    history = one.queries.history(KEY, 10, "")
    assert history is not None
    assert [(item.position, item.at[-4:], item.outcome) for item in history.items] == [
        ("0:0:0", "700Z", "applied"),
        ("0:0:1", "800Z", "applied"),
        ("0:0:2", "900Z", "too_late"),
    ]

    retry = ev.RetryRequested(id="r", job="a", of="e", not_after=NOW_MS + 5_000)
    one.fold([record(2, retry)])
    after, again = one.queries.view(KEY), one.queries.history(KEY, 10, "0:0:1")
    assert after is not None
    assert again is not None
    assert (after.state, after.position) == ("ready", "0:2:0")
    assert [item.position for item in again.items] == ["0:0:2", "0:2:0"]


def test_a_copied_job_as_it_was() -> None:
    """Leases of another log, under rules of another time, and what followed here."""
    one = OnePartition()
    first = ev.Enqueued(id="e", job="a~k", job_type="t", unique=ev.Unique("k"), batch="b", max_attempts=1)
    at = [pack(n, 0) for n in (700, 800, 900, 950)]
    leased = ev.Leased(id="l", job="a~k", epoch=0, worker="w", attempt=1, lease_ms=9_000, seen=at[0])
    failed = ev.Failed(id="f", job="a~k", lease="l", error=ev.JobError("boom"))
    record_dead = ev.DeadLettered(id="d", job="a~k", epoch=0, seen=at[2], reason="r")
    lines = (first, leased, failed, record_dead)
    places = [CopiedPlace(place, place, THEN_MS + n) for n, place in enumerate(at)]
    one.fold([record(0, *lines, headers=((COPY_HEADER, encode_copied_from("copy", 3, 4, 0, places)),))])
    one.fold([record(1, ev.CopySealed(id="seal", copy="copy", generation=1, rules=5))])
    key = job_key("default", "a~k")
    copied = one.queries.view(key)
    one.fold([record(2, ev.RetryRequested(id="r", job="a~k", of="e", not_after=NOW_MS + 5_000))])
    assert copied is not None
    assert (copied.state, copied.unique is not None, copied.batch) == ("dead", True, None)

    def was(packed: int) -> tuple[str, int]:
        view = one.queries.view_as_of(key, None, packed)
        assert view is not None
        return view.state, len(view.errors)

    assert [was(pack(0, n)) for n in range(4)] == [("ready", 0), ("active", 0), ("dead", 1), ("dead", 1)]
    assert one.queries.view_as_of(key, NOW_MS - 1, 0) == copied
    assert was(pack(2, 0)) == ("ready", 1)
    assert one.queries.view_as_of(key, NOW_MS, 0) == one.queries.view(key)


def test_what_an_older_version_folded_has_to_be_folded_anew() -> None:
    one = OnePartition()
    begun = ev.Enqueued(id="e", job="a", job_type="t")
    header = encode_copied_from("copy", 3, 1, 0, [CopiedPlace(pack(7, 0), pack(7, 0), THEN_MS)])
    one.fold([record(0, begun, headers=((COPY_HEADER, header),))])
    one.fold([record(1, ev.CopySealed(id="seal", copy="copy", generation=1))])
    history = one.kv.scan(HISTORY)
    for row, data in list(history):
        batch = one.kv.batch()
        batch.put(HISTORY, row, encode([line[:3] for line in decode_lines(data)]))
        one.kv.write(batch)
    with pytest.raises(ReadModelUnavailable, match="projection rebuild"):
        one.queries.view_as_of(KEY, NOW_MS, 0)
