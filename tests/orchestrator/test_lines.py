"""Lines that are put together from parts say what the event would."""

from __future__ import annotations

import pytest
from msgspec import structs

from penstock.orchestrator.fleet import Session
from penstock.orchestrator.lines import LeaderLines
from penstock.schemas import events as ev
from penstock.schemas.codec import decode_line
from tests.orchestrator.desk import Desk

ODD = 'w "\\\n\u00e9'


@pytest.mark.parametrize("odd", ["plain", ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("tenant", ["default", "other"])
def test_a_lease_is_the_event_that_it_stands_for(odd: str, tenant: str) -> None:
    desk = Desk()
    desk.enqueue("j~home")
    job = structs.replace(desk.job("j~home"), tenant=tenant, last_event=odd, attempt=2)
    session = Session((odd, odd))
    session.incarnation, session.lease_ms = odd, 7_000
    writer = LeaderLines(3, odd, "inc")
    writer.epoch = 42
    leases = writer.leases(session, desk.now())
    for number in (1, 2):
        lease, line = leases.leased(job)
        assert b"\n" not in line
        assert decode_line(line) == ev.Leased(
            id=f"3.42.{number}", job=job.id, tenant=tenant, epoch=42, actor=f"orchestrator/{odd}", cause=odd,
            worker=odd, incarnation=odd, via=odd, attempt=3, lease_ms=7_000, seen=job.seen, at=desk.now().log_ms,
        )  # fmt: skip
        assert lease == f"3.42.{number}"


def test_what_is_as_by_default_is_left_out() -> None:
    desk = Desk()
    desk.enqueue("j")
    _, line = LeaderLines(0, "o", "inc").leases(Session(("w", "")), desk.now()).leased(desk.job("j"))
    assert not any(name in line for name in (b"tenant", b"via", b"incarnation"))
