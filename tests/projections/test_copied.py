"""The read model of a copied log: when things happened is as it was, and where lines stand is where they stand now."""

from __future__ import annotations

from penstock.log.port import Headers, Record
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.copies import COPY_HEADER, CopiedPlace, encode_copied_from
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
