"""How much to prefetch, by how long jobs take."""

from __future__ import annotations

import pytest

from penstock.workers.runtimes import MAX_PREFETCH, MEASURED_FROM, RunTimes


def measured(**types: float) -> RunTimes:
    times = RunTimes()
    for job_type, run_ms in types.items():
        for _ in range(MEASURED_FROM):
            times.add(job_type, run_ms)
    return times


@pytest.mark.parametrize(
    ("run_ms", "concurrency", "prefetch"),
    [
        (0.1, 4, 4 * 256),  # 500 a slot, as a power of two
        (0.001, 10, MAX_PREFETCH),
        (1.0, 10, 320),
        (25.0, 10, 20),
        (50.0, 10, 10),
        (51.0, 10, 0),
        (10_000.0, 10, 0),
    ],
)
def test_c2_prefetch_is_what_runs_in_50_ms(run_ms: float, concurrency: int, prefetch: int) -> None:
    assert measured(a=run_ms).prefetch(concurrency, {"a"}) == prefetch


def test_c2_nothing_is_prefetched_of_types_that_were_not_measured() -> None:
    times = measured(a=0.1)
    assert times.prefetch(4, {"a", "b"}) == 0
    for _ in range(MEASURED_FROM - 1):
        times.add("b", 0.1)
    assert times.prefetch(4, {"b"}) == 0
    times.add("b", 0.1)
    assert times.prefetch(4, {"a", "b"}) > 0


def test_the_slowest_type_that_is_waited_for_counts() -> None:
    times = measured(fast=0.1, slow=40.0)
    assert times.prefetch(1, {"fast"}) == 256
    assert times.prefetch(1, {"fast", "slow"}) == 1


def test_where_demand_is_unknown_all_that_was_measured_counts() -> None:
    assert measured(fast=0.1, slow=40.0).prefetch(1, ()) == 1
    assert RunTimes().prefetch(1, ()) == 0


def test_the_95th_percentile_counts_and_not_the_mean() -> None:
    times = RunTimes()
    for number in range(128):
        times.add("a", 100.0 if number % 10 == 0 else 0.1)
    assert times.p95_ms("a") == 100.0


def test_one_outlier_changes_nothing() -> None:
    times = RunTimes()
    for number in range(128):
        times.add("a", 100.0 if number == 60 else 0.1)
    assert times.p95_ms("a") == 0.1


def test_a_type_that_became_slow_is_believed_at_once() -> None:
    times = measured(a=0.1)
    times.slow("a", 700.0)
    assert times.prefetch(10, {"a"}) == 0


def test_only_what_changes_the_prefetch_is_worth_looking_at_it_anew() -> None:
    times = RunTimes()
    told = [times.add("a", 0.1) for _ in range(256)]
    assert [number for number, changed in enumerate(told, 1) if changed] == [MEASURED_FROM]
    told = [times.add("a", 20.0) for _ in range(256)]
    assert told.count(True) == 1
    assert times.prefetch(1, {"a"}) == 2
