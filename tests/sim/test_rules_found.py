"""Schedules that the simulator found: each is told here in its shortest form, named after the rule that it broke."""
# ruff: noqa: N802  # tests bear the names of the rules

from __future__ import annotations

import pytest

from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from penstock.schemas.position import pack
from tests.orchestrator.desk import Desk, deliveries


def test_F1_what_a_deposed_leader_strikes_off_is_still_owed() -> None:
    """Its late ``Forwarded`` is refused by the fold, so the line waits until the leader of now strikes it off."""
    desk = Desk(partitions=2)
    desk.leader()
    job = next(f"j{n}" for n in range(99) if partition_of(f"j{n}", 2) == 1)
    assert desk.write(0, ev.Enqueued(id="e", job=job, job_type="noop")) == ["misrouted"]
    position = pack(len(desk.records[0]) - 1, 0)
    (forward,) = desk.step().forwards
    desk.write(1, *forward.lines)
    desk.step("o", forwarded=[forward])  # its own Forwarded is lost on the way
    assert desk.write(0, ev.Forwarded(id="late", line_position=position, target=1, epoch=-1)) == ["stale"]
    desk.pass_ms(6_000)
    assert desk.fold[0].state.misrouted == 0


@pytest.mark.parametrize("leaves", [True, False])
def test_D3_a_worker_whose_clock_was_set_back_is_heard_once_its_earlier_life_is_over(leaves: bool) -> None:
    """Its new incarnation looks older than the one before; nothing is left that could be mistaken for it."""
    desk = Desk()
    desk.leader()
    desk.settle("o", desk.heartbeat(incarnation="b", credits=0, leaving=leaves))
    desk.enqueue("j")
    if not leaves:
        assert deliveries(*desk.settle("o", desk.heartbeat(incarnation="a"))) == []
        desk.pass_ms(6_000)
    assert [one.incarnation for one in deliveries(*desk.settle("o", desk.heartbeat(incarnation="a")))] == [
        "a"
    ]
