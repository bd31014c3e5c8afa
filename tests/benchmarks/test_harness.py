"""What the benchmarks count and say, without any of the systems that they measure."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import publishing, run, tally
from benchmarks.failover import led_by, standstills_s
from benchmarks.http_load import percentile
from benchmarks.peers.python.producing import Blocking, due_times
from benchmarks.report import Table
from benchmarks.served import BULK_BYTES, bodies_of
from benchmarks.side_by_side import Plan, by_turns
from benchmarks.system import System, Wrong, drain

SECOND_NS = 1_000_000_000


class Queue(System):
    """One that runs everything at once, or as many as it is told to."""

    def __init__(self, name: str, loses: int = 0) -> None:
        super().__init__()
        self.name = name
        self._loses = loses
        self._jobs = 0
        self.order: list[str] = []

    def version(self) -> str:
        return "1"

    def clear(self) -> None:
        self._jobs = 0

    def bulk(self, jobs: int, kind: str) -> float:
        self._jobs += jobs
        return 0.5

    def one(self, seconds: float, in_flight: int) -> dict[str, Any]:
        return {}

    def pace(self, per_s: float, seconds: float, lanes: int) -> dict[str, Any]:
        return {}

    def start_worker(self) -> None:
        for _ in range(self._jobs - self._loses):
            tally.count()
        self._jobs = 0

    def stop_worker(self) -> None:
        """Nothing runs."""

    def unfinished(self, jobs: int) -> int:
        return self._jobs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tally that has counted nothing yet, and is told where to at its first job."""
    monkeypatch.setattr(tally, "_process", tally._Process())
    monkeypatch.setattr("benchmarks.system.SETTLE_S", 0.0)
    monkeypatch.setattr("benchmarks.system.STALL_S", 0.05)


def test_handlers_of_many_threads_are_all_counted(
    tmp_path: Path, counted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TALLY", str(tmp_path))
    threads = [threading.Thread(target=lambda: [tally.count() for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs, first_ns = tally.read_count(tmp_path)
    assert jobs == 4_000
    assert first_ns > 0


def test_a_forked_process_counts_on_its_own(
    tmp_path: Path, counted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TALLY", str(tmp_path))
    monkeypatch.setattr(tally, "_process", process := tally._Process())
    tally.count()
    child = os.fork()
    if not child:
        process.begin()
        tally.count()
        os._exit(0)
    os.waitpid(child, 0)
    tally.count()
    assert tally.read_count(tmp_path)[0] == 3


def test_latencies_and_places_come_back_as_they_were_noted(
    tmp_path: Path, counted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_TALLY", str(tmp_path))
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000)
    tally.since(3_000_000)
    assert tally.read_latencies_ms(tmp_path) == [2.0]
    tally.forget_latencies(tmp_path)
    assert tally.read_latencies_ms(tmp_path) == []
    monkeypatch.setattr(tally, "_process", tally._Process())
    tally.place(7)
    assert tally.read_places(tmp_path) == [(7, 5_000_000)]


def test_a_drain_is_timed_from_the_first_handler_on(counted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue("whole")
    monkeypatch.setenv("BENCH_TALLY", str(queue.tally))
    enqueued, drained = drain(queue, 100)
    assert enqueued == 200
    assert drained > 0
    queue.close()


def test_a_system_that_loses_a_job_fails(counted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue("leaky", loses=1)
    monkeypatch.setenv("BENCH_TALLY", str(queue.tally))
    with pytest.raises(Wrong, match="99 of 100"):
        drain(queue, 100)
    queue.close()


def test_systems_take_turns_and_a_failing_one_is_left_out() -> None:
    systems = [Queue("a"), Queue("b"), Queue("c")]
    plan = Plan(jobs=1, rounds=2, one_s=1)
    order: list[str] = []

    def measure(system: System) -> str:
        order.append(system.name)
        if system.name == "b":
            raise Wrong("no")
        return system.name

    found = by_turns(systems, plan, "part", measure)
    assert order == ["a", "b", "b", "c", "c", "a"], "a round that failed is done once more"
    assert found == {"a": ["a", "a"], "c": ["c", "c"]}
    assert plan.failures == ["part, round 1: b", "part, round 1: b"]
    for system in systems:
        system.close()


def test_bulk_calls_have_every_job_and_are_not_too_large() -> None:
    calls = list(bodies_of(1_000, "payload"))
    assert sum(items for items, _ in calls) == 1_000
    assert all(len(json.loads(body)) == items for items, body in calls)
    assert max(len(body) for _, body in calls) <= BULK_BYTES * 1.01
    numbers = [job["payload"]["number"] for _, body in bodies_of(25_000, "flaky") for job in json.loads(body)]
    assert numbers == list(range(25_000))


def test_lanes_share_a_schedule() -> None:
    times = sorted(due for lane in range(4) for due in due_times(100, 1, 4, lane))
    assert len(times) == 100
    assert times == pytest.approx([number / 100 for number in range(100)])


def test_a_caller_that_fails_is_heard_of() -> None:
    def send(kind: str, sent_ns: int) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        Blocking(lambda jobs, kind: None, send).one(0.01, 2)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentile(range(1, 101), 0.5) == 51
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0


def test_a_standstill_is_told_from_what_was_leased_before() -> None:
    killed_ns = 100 * SECOND_NS
    going_on = [(0, killed_ns + step * SECOND_NS // 10) for step in range(1, 100)]
    before = [(1, killed_ns - SECOND_NS), (1, killed_ns + SECOND_NS // 5)]
    after = [(1, killed_ns + 4 * SECOND_NS + step * SECOND_NS // 10) for step in range(20)]
    assert standstills_s(going_on + before + after, killed_ns, [0, 1]) == [4.0]


def test_who_said_last_that_it_leads_does(tmp_path: Path) -> None:
    outputs = {name: tmp_path / name for name in ("o1", "o2")}
    line = "2026-01-01T00:00:{}.000Z info    penstock.orchestrator: partition {}: leading with epoch 1:1:0\n"
    outputs["o1"].write_text(line.format("01", 0) + line.format("01", 1))
    outputs["o2"].write_text(line.format("02", 1))
    assert led_by("o1", outputs) == [0]
    assert led_by("o2", outputs) == [1]


def test_a_table_is_aligned_markdown() -> None:
    table = Table("part", "Title", ("jobs/s",), "A note.")
    table.add("Penstock", ["1,000"], [1_000])
    assert table.markdown().splitlines() == [
        "### Title",
        "",
        "|          | jobs/s |",
        "| ---      | ---:   |",
        "| Penstock | 1,000  |",
        "",
        "A note.",
    ]
    assert table.figures == {("Penstock", "jobs/s"): 1_000}


def test_the_last_line_is_ours_over_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("drain", "", ("drained, jobs/s",))
    for name, per_s in (("Penstock", 3_000), ("River", 2_000), ("Dramatiq", 1_000)):
        table.add(name, [""], [per_s])
    run._print_ratios([table])
    assert capsys.readouterr().out == "ratio drain river=1.50 dramatiq=3.00\n"


def test_parts_and_peers_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS", "river, SAQ")
    assert run.chosen("PEERS", ["SAQ", "River", "asynq"], []) == ["SAQ", "River"]
    monkeypatch.setenv("PEERS", "none")
    assert run.chosen("PEERS", ["SAQ"], ["SAQ"]) == []
    monkeypatch.setenv("PEERS", "")
    assert run.chosen("PEERS", ["SAQ"], ["SAQ"]) == ["SAQ"]
    monkeypatch.setenv("PEERS", "rivers")
    with pytest.raises(SystemExit, match="rivers"):
        run.chosen("PEERS", ["River"], [])


def test_the_page_has_a_place_for_every_table() -> None:
    page = publishing.PAGE.read_text(encoding="utf-8")
    parts = [
        "machine",
        "versions",
        "drain",
        "enqueue",
        "latency, idle",
        "latency, half load",
        "retries",
        "payloads",
    ]
    parts += ["scale", "costs", "replay", "search", "backlog", "memory", "reads", "restart", "failover"]
    for part in parts:
        assert "new text" in publishing._replaced(page, part, "new text"), part
    with pytest.raises(KeyError):
        publishing._replaced(page, "nothing", "new text")
