"""Names and shapes of topics."""

from __future__ import annotations

import pytest

from penstock.schemas.errors import SettingsInvalid
from penstock.schemas.topics import BROADCAST, Topics


def test_names() -> None:
    topics = Topics("ns")
    assert [topics.jobs, topics.control, topics.signals, topics.workers, topics.quarantine] == [
        f"ns.{name}" for name in ("jobs", "control", "signals", "workers", "quarantine")
    ]
    assert topics.work_topics == ("ns.work.critical", "ns.work.high", "ns.work.normal", "ns.work.low")


@pytest.mark.parametrize("work_partitions", [2, 3, 64])
def test_routes_reach_workers_and_never_everybody(work_partitions: int) -> None:
    topics = Topics(work_partitions=work_partitions)
    routes = {topics.route_of(f"worker-{number}") for number in range(2_000)}
    assert routes == set(range(1, work_partitions))
    assert BROADCAST not in routes


def test_reports_of_a_worker_stay_in_order() -> None:
    topics = Topics(worker_partitions=2)
    assert {topics.reports_partition_of(f"w{number}") for number in range(50)} == {0, 1}
    assert topics.reports_partition_of("w") == topics.reports_partition_of("w")


@pytest.mark.parametrize("shape", [{"partitions": 0}, {"work_partitions": 1}, {"worker_partitions": 0}])
def test_shapes_that_cannot_work(shape: dict[str, int]) -> None:
    with pytest.raises(SettingsInvalid):
        Topics(**shape)
