"""The simulator bites in whole processes too: each of these mistakes, made on purpose, is found within a few seeds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from penstock.api import operating
from penstock.core import job
from penstock.core.job import TERMINAL, Place
from penstock.core.partition import PartitionFold
from penstock.log.bundler import Bundler
from penstock.log.port import Appended
from penstock.orchestrator import fleet, partition
from penstock.orchestrator.retention import Retention
from penstock.projections.projector import Projector
from penstock.projections.service import ProjectionService
from penstock.schemas import events as ev
from penstock.schemas.errors import AppendUnknown
from penstock.state.partition_store import META, PartitionStore
from penstock.workers.memory import FinishedLeases
from penstock.workers.session import Session
from tests.sim import whole
from tests.sim.weather import FORGET_MS, Weather
from tests.sim.whole import simulate_whole
from tests.sim.world import Violation

# A world ends at the first violation, with coroutines and loops in it that nobody runs to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FAIR = Weather(storm_ms=6_000, partitions=2, orchestrators=2, workers=2, http_workers=0, jobs=15)
STORM = Weather(
    storm_ms=8_000, partitions=2, orchestrators=2, workers=2, projections=2, jobs=15, append_fault=0.15, hint_lost=0.1,
    hint_doubled=0.2, hint_late=0.2, orchestrator_trouble_ms=3_000, worker_trouble_ms=2_000, process_trouble_ms=2_000,
    odd_lines=0.5, verbs=0.4, crash_in_writes=0.005, slow_turns=0.01, skew_ms=5_000,
)  # fmt: skip
GATEWAY = Weather(
    storm_ms=10_000, partitions=1, orchestrators=1, workers=0, http_workers=2, jobs=20, worker_trouble_ms=1_500,
)  # fmt: skip


DOUBLED = Weather(storm_ms=8_000, partitions=1, jobs=15, hint_doubled=0.9)
CLOCKS = Weather(
    storm_ms=8_000,
    partitions=1,
    jobs=10,
    worker_trouble_ms=800,
    hint_doubled=0.3,
    hint_late=0.3,
    skew_ms=20_000,
)
READERS = Weather(storm_ms=8_000, partitions=1, projections=2, workers=1, jobs=30, process_trouble_ms=400)
UNKNOWN = Weather(storm_ms=5_000, partitions=1, jobs=15, append_fault=0.3)
CRASHES = Weather(storm_ms=6_000, partitions=2, projections=2, jobs=20, crash_in_writes=0.1)
UPGRADE = Weather(storm_ms=8_000, partitions=1, workers=1, orchestrators=2, jobs=60, upgrade_ms=200)
COPY = Weather(storm_ms=4_000, partitions=2, orchestrators=1, jobs=15, verbs=0.5, odd_lines=0.5, copy_to=3)
BULK = Weather(
    storm_ms=8_000, partitions=2, orchestrators=1, workers=1, http_workers=1, jobs=60, process_trouble_ms=300,
    operations_ms=500,
)  # fmt: skip
FORGETFUL = Weather(storm_ms=4_000, partitions=1, orchestrators=1, jobs=10, forget_ms=FORGET_MS)


class Mistake(NamedTuple):
    """What is done wrong, in which weather it shows, and within how many seeds from which on."""

    make: Callable[[pytest.MonkeyPatch], None]
    weather: Weather = STORM
    seeds: int = 30
    first: int = 4_000


def name_nothing_in_heartbeats(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_holding", lambda self, now_ms: [])


def renew_at_the_gateway_what_nobody_named(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "_renews", lambda self, lease, now_ms: True)
    patch.setattr(Session, "lapse", lambda self, now_ms: None)


def run_a_finished_lease_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FinishedLeases, "remember", lambda self, lease, line, now_ms: None)


def take_what_is_for_another_incarnation(patch: pytest.MonkeyPatch) -> None:
    deliver = Session.deliver

    def any_of_the_name(self: Session, deliveries: Any) -> None:
        mine = self.profile.incarnation
        deliver(self, [msgspec.structs.replace(one, incarnation=mine) for one in deliveries])

    patch.setattr(Session, "deliver", any_of_the_name)


def deliver_without_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    body = PartitionStore.body

    def no_checkpoint(self: PartitionStore, key: str, kind: Any) -> bytes | None:
        return None if kind == "checkpoint" else body(self, key, kind)

    patch.setattr(PartitionStore, "body", no_checkpoint)


def count_a_duplicate(patch: pytest.MonkeyPatch) -> None:
    keep = Projector._keep_refused

    def counted(self: Projector, line: Any) -> None:
        if line.outcome == "duplicate" and line.after is not None:
            self.groups.add(self.groups.of(line.after), line.after.created_at_ms)
        keep(self, line)

    patch.setattr(Projector, "_keep_refused", counted)


def commit_the_offset_apart_from_the_rows(patch: pytest.MonkeyPatch) -> None:
    commit = PartitionStore.commit

    def offset_first(self: PartitionStore, *extra: Any) -> None:
        store = self.store
        batch = store.batch()

        class Split:
            """Takes the offset out of the batch, and writes it by itself, before the rows."""

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            def batch(self) -> Any:
                return batch

            def write(self, full: Any, *, sync: bool = False) -> None:
                offset = store.batch()
                for _, family, key, value in full.changes:
                    if family is store.family(META) and key == b"progress":
                        offset.put(META, key, value)
                store.write(offset)
                store.write(full)

        self.store = Split()
        try:
            commit(self, *extra)
        finally:
            self.store = store

    patch.setattr(PartitionStore, "commit", offset_first)


def answer_reads_at_once(patch: pytest.MonkeyPatch) -> None:
    async def no_waiting(self: ProjectionService, positions: Any, timeout_ms: int) -> None:
        await asyncio.sleep(0)

    patch.setattr(ProjectionService, "wait", no_waiting)


def take_the_unknown_for_written(patch: pytest.MonkeyPatch) -> None:
    async def once(self: Bundler, partition: int, value: bytes) -> Appended:
        try:
            return await self._log.append(self._topic, partition, value, key=self._key, headers=self._headers)
        except AppendUnknown:
            return Appended(0, 0)

    patch.setattr(Bundler, "_append", once)


def believe_the_highest_incarnation_for_ever(patch: pytest.MonkeyPatch) -> None:
    life = fleet._Life
    patch.setattr(fleet, "_Life", lambda incarnation, heard_ms, lasts_ms: life(incarnation, heard_ms, 10**9))
    patch.setattr(whole, "CLEAR_SKY_MS", 60_000)


def leave_a_job_in_the_lane_that_it_waited_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(partition, "lane_of", lambda job: None)
    patch.setattr(whole, "CLEAR_SKY_MS", 30_000)


def copy_lines_with_the_time_of_their_copying(patch: pytest.MonkeyPatch) -> None:
    take = PartitionFold._copied_line

    def now(self: PartitionFold, position: int, line: bytes, place: Place, *others: Any) -> Any:
        return take(self, position, line, Place(place.position, place.time_ms + 1), *others)

    patch.setattr(PartitionFold, "_copied_line", now)


def forget_without_looking_at_the_age(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retention, "is_over", lambda self, job, log_ms: job.state in TERMINAL)
    rule = job._RULES[ev.Forgotten]
    patch.setitem(job._RULES, ev.Forgotten, rule._replace(refuses=lambda *_: None))


def take_an_operations_open_page_for_done(patch: pytest.MonkeyPatch) -> None:
    """Whoever goes on with an operation believes that its last page was asked, as no checkpoint says otherwise."""

    async def none(*_: object) -> list[Any]:
        return []

    patch.setattr(operating.Operator, "_not_asked_yet", none)


MISTAKES = [
    Mistake(name_nothing_in_heartbeats, FAIR),
    Mistake(renew_at_the_gateway_what_nobody_named, GATEWAY),
    Mistake(run_a_finished_lease_again, DOUBLED),
    Mistake(take_what_is_for_another_incarnation, CLOCKS),
    Mistake(deliver_without_the_checkpoint),
    Mistake(count_a_duplicate, UNKNOWN),
    Mistake(commit_the_offset_apart_from_the_rows, CRASHES),
    Mistake(answer_reads_at_once, READERS),
    Mistake(take_the_unknown_for_written, UNKNOWN),
    Mistake(believe_the_highest_incarnation_for_ever, CLOCKS, seeds=60),
    Mistake(leave_a_job_in_the_lane_that_it_waited_in, UPGRADE),
    Mistake(copy_lines_with_the_time_of_their_copying, COPY),
    Mistake(forget_without_looking_at_the_age, FORGETFUL),
    # One world in some seventy has a process killed between an operation's page and its checkpoint.
    Mistake(take_an_operations_open_page_for_done, BULK, seeds=60, first=4_130),
]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    # What a world that was given up in the middle leaves behind goes now, and not in somebody else's test.
    gc.collect()
    _close_the_loop_of_nobody()
    logging.disable(logging.NOTSET)


def _close_the_loop_of_nobody() -> None:
    """A coroutine that ends outside of every loop may ask asyncio for one, which then makes it."""
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        warnings.simplefilter("ignore")
        asyncio.get_event_loop().close()
    asyncio.set_event_loop(None)


def finding_of(seeds: Sequence[int], weather: Weather) -> str:
    for seed in seeds:
        try:
            simulate_whole(seed, weather)
        except (Violation, AssertionError) as found:
            return str(found) or "an assertion inside"
    return ""


@pytest.mark.parametrize(
    "weather",
    [FAIR, STORM, GATEWAY, UPGRADE, COPY, FORGETFUL, BULK],
    ids=["fair", "storm", "gateway", "upgrade", "copy", "forgetful", "bulk"],
)
def test_without_a_mistake_nothing_is_found(weather: Weather) -> None:
    assert finding_of(range(4_000, 4_004), weather) == ""


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.make.__name__)
def test_a_mistake_is_found(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake.make(monkeypatch)
    assert finding_of(range(mistake.first, mistake.first + mistake.seeds), mistake.weather)
