"""Copying a log: every job comes out as it was, whatever happens on the way, and the copy goes on as a log."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from penstock.core.job import Job
from penstock.core.partition import PartitionFold
from penstock.log.memory import Fault
from penstock.log.namespace import open_namespace, read_shape
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.copies import CopiedPlace, copy_header
from penstock.schemas.errors import (
    Conflict,
    LogCopying,
    LogUnavailable,
    NotFound,
    OffsetTrimmed,
    RecordTooLarge,
)
from penstock.schemas.ids import partition_of
from penstock.schemas.limits import MAX_BUNDLE_BYTES, MAX_BUNDLE_LINES
from penstock.schemas.position import generation_of
from penstock.schemas.topics import Topics
from penstock.state import copy_fold, copy_log
from penstock.state.copy_compare import Comparison, first_difference, totals
from penstock.state.copy_records import MAX_RECORD_BYTES, CopiedLine, copied_records
from tests.state.copying import SOURCE, Died, Dying, World, made_anew, random_world, target_topics


async def copied(world: World, target: Topics, **options: Any) -> Comparison:
    async with world.copier(target, **options) as copier:
        await copier.copy()
        comparison = await copier.compare()
        assert comparison.same, comparison.difference
        await copier.seal()
        return comparison


def folded(world: World, topics: Topics) -> list[PartitionFold]:
    """The target as everybody else folds it."""
    folds: list[PartitionFold] = []
    for number in range(topics.partitions):
        fold = PartitionFold(number, topics.partitions, lambda _: None)
        for one in world.log.topics.read(topics.jobs, number, 0, 10**6):
            fold.fold(one.offset, one.time_ms, True, one.value, copy_header(one.headers))
        folds.append(fold)
    return folds


def jobs_of(folds: list[PartitionFold]) -> dict[str, Job]:
    return {key: job for fold in folds for key, job in fold.touched_jobs() if job is not None}


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("seed", range(4))
async def test_every_job_comes_out_as_it_was(seed: int, partitions: int) -> None:
    world, target = await random_world(seed), target_topics(partitions)
    comparison = await copied(world, target)
    jobs = jobs_of(folded(world, target))
    assert jobs == world.jobs()
    assert len({job.state for job in jobs.values()}) > 3
    assert comparison.a.jobs == len(jobs) > 0


async def test_the_copy_can_be_opened_once_it_is_sealed() -> None:
    world, target = await random_world(1), target_topics(5)
    async with world.copier(target) as copier:
        await copier.copy()
        with pytest.raises(LogCopying, match=r"source\.jobs of log memory"):
            await open_namespace(world.log, target)
        assert (await copier.compare()).same
        await copier.seal()
    assert (await open_namespace(world.log, target)).generation == 1
    assert {fold.state.generation for fold in folded(world, target)} == {1}


async def test_configuration_is_copied_and_rules_go_on() -> None:
    world, target = await random_world(1), target_topics(2)
    line = ev.Configured(id="c", control_position=1 << 15, previous=0, settings=msgspec.Raw(b'{"a":1}'))
    await world.log.append(SOURCE.control, 0, encode_line(line))
    await copied(world, target)
    control = world.log.topics.read(target.control, 0, 0)
    assert [record.value for record in control[1:-1]] == [encode_line(line)]
    assert {fold.state.rules for fold in folded(world, target)} == {1}
    assert {fold.state.config_position for fold in folded(world, target)} == {-1}


async def test_a_copy_of_a_copy_is_the_same_again() -> None:
    world = await random_world(3)
    middle, last = target_topics(5, "middle"), target_topics(2, "last")
    await copied(world, middle)
    # The middle one lives on for a while before it is copied in turn.
    for number in range(middle.partitions):
        lines = [
            encode_line(ev.Enqueued(id=f"enq.n-{n}", job=f"n-{n}", job_type="t"))
            for n in range(60)
            if partition_of(f"n-{n}", 5) == number
        ]
        await world.log.append(middle.jobs, number, b"\n".join(lines))
    await copied(world, last, source=middle)
    jobs = jobs_of(folded(world, last))
    assert jobs == jobs_of(folded(world, middle))
    assert {generation_of(job.seen) for job in jobs.values()} == {0, 1}
    assert (await open_namespace(world.log, last)).generation == 2


# Whatever happens on the way


async def test_a_copier_that_dies_anywhere_is_followed_by_one_that_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copy_fold, "_POLL_RECORDS", 30)
    for landed in (True, False):
        for appends in itertools.count(1):
            world, target = await random_world(2), target_topics(3)
            try:
                async with world.copier(target, Dying(world, appends, landed=landed)) as copier:
                    await copier.copy()
                    await copier.compare()
                    await copier.seal()
            except Died:
                pass
            else:
                break
            await copied(world, target)
            assert jobs_of(folded(world, target)) == world.jobs()
            assert (await open_namespace(world.log, target)).generation == 1
        assert appends > 10


@pytest.mark.parametrize(
    "fault", [Fault.WRITTEN_UNKNOWN, Fault.LOST_UNKNOWN, Fault.LATE_UNKNOWN, Fault.REFUSED]
)
async def test_a_write_of_unknown_outcome_is_repeated(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_log, "AGAIN_S", 0.0)
    world, target = await random_world(5), target_topics(2)
    async with world.copier(target) as copier:
        for number in range(2):
            world.log.topics.arm(fault, fault, None, fault, topic=target.jobs, partition=number)
        await copier.copy()
        world.log.topics.land_late()
        assert (await copier.compare()).same
        await copier.seal()
    assert jobs_of(folded(world, target)) == world.jobs()


async def test_what_lands_after_the_seal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_log, "AGAIN_S", 0.0)
    world, target = await random_world(5), target_topics(1)
    async with world.copier(target) as copier:
        world.log.topics.arm(Fault.LATE_UNKNOWN, topic=target.jobs)
        await copier.copy()
        assert (await copier.compare()).same
        await copier.seal()
    assert world.log.topics.land_late() == 1
    assert jobs_of(folded(world, target)) == world.jobs()


async def test_a_log_that_takes_nothing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_log, "AGAIN_S", 0.0)
    world, target = await random_world(5), target_topics(1)
    async with world.copier(target) as copier:
        world.log.topics.arm(*[Fault.LOST_UNKNOWN] * copy_log.ATTEMPTS, topic=target.jobs)
        with pytest.raises(LogUnavailable, match="Start again"):
            await copier.copy()
    await copied(world, target)


async def test_what_comes_meanwhile_is_copied_by_the_next_call() -> None:
    world, target = await random_world(1), target_topics(4)
    async with world.copier(target) as copier:
        await copier.copy()
        assert await copier.behind() == 0
        world.writers[0].enqueue(next(f"more-{n}" for n in range(99) if partition_of(f"more-{n}", 3) == 0))
        world.writers[1].announce()
        await world.write()
        assert await copier.behind() == 2
        await copier.copy()
        assert (await copier.compare()).same
        assert await copier.behind() == 0


# What is refused


async def test_a_source_that_was_written_after_the_seal_is_told() -> None:
    world, target = await random_world(1), target_topics(4)
    await copied(world, target)
    await copied(world, target)  # once more changes nothing
    assert jobs_of(folded(world, target)) == world.jobs()
    world.writers[0].enqueue(next(f"late-{n}" for n in range(99) if partition_of(f"late-{n}", 3) == 0))
    await world.write()
    async with world.copier(target) as copier:
        with pytest.raises(Conflict, match="sealed"):
            await copier.copy()


async def test_a_namespace_that_is_in_use_is_left_alone() -> None:
    world = await random_world(1)
    await open_namespace(world.log, target_topics(2, "used"))
    await made_anew(world, target_topics(2, "other"))
    for name, message in (("used", "in use already"), ("other", "a copy of elsewhere")):
        with pytest.raises(Conflict, match=message):
            async with world.copier(target_topics(2, name)):
                pass
    async with world.copier(target_topics(2, "begun")):
        pass


async def test_records_that_somebody_wrote_before_are_not_mixed_with_a_copy() -> None:
    world, target = await random_world(1), target_topics(1)
    from penstock.log.namespace import topic_specs

    await world.log.ensure_topics(topic_specs(target))
    await world.log.append(target.jobs, 0, b"{}")
    with pytest.raises(Conflict, match="records already"):
        async with world.copier(target):
            pass


async def test_who_writes_into_a_copy_is_found_before_it_is_sealed() -> None:
    world, target = await random_world(1), target_topics(1)
    async with world.copier(target) as copier:
        await copier.copy()
        await world.log.append(target.jobs, 0, encode_line(ev.Enqueued(job="stranger", job_type="t")))
        with pytest.raises(Conflict, match="1 lines in the target are not of this copy"):
            await copier.compare()


async def test_a_forward_that_is_owed_must_be_made_first() -> None:
    world, target = await random_world(1), target_topics(2)
    stray = next(f"stray-{n}" for n in range(99) if partition_of(f"stray-{n}", 3) == 1)
    world.writers[0].enqueue(stray)
    await world.write()
    async with world.copier(target) as copier:
        await copier.copy()
        with pytest.raises(Conflict, match="not forwarded yet"):
            await copier.compare()
    fold = world.writers[0]._fold
    position = world.writers[0].records[-1].offset << 15
    line = ev.Enqueued(id=f"enq.{stray}", job=stray, job_type="resize", origin=f"0:{position >> 15}:0")
    world.writers[1].write(line)
    world.writers[0].write(ev.Forwarded(id="f", epoch=fold.state.epoch, line_position=position, target=1))
    await world.write()
    await copied(world, target)
    assert jobs_of(folded(world, target)) == world.jobs()
    assert f"default/{stray}" in world.jobs()


async def test_no_log_an_unfinished_one_and_a_trimmed_one_cannot_be_copied() -> None:
    world = World()
    with pytest.raises(NotFound):
        async with world.copier(target_topics(1)):
            pass
    await made_anew(world, target_topics(2, "unfinished"))
    with pytest.raises(LogCopying):
        async with world.copier(target_topics(1), source=target_topics(2, "unfinished")):
            pass
    world = await random_world(1)
    await world.log.truncate(SOURCE.jobs, 0, 3)
    async with world.copier(target_topics(1)) as copier:
        with pytest.raises(OffsetTrimmed):
            await copier.copy()


async def test_another_number_of_partitions_is_another_copy() -> None:
    world = await random_world(1)
    async with world.copier(target_topics(2)) as copier:
        await copier.copy()
    shape = await read_shape(world.log, target_topics(2))
    assert (shape.partitions, shape.generation, shape.copy) == (2, 1, "memory/source.jobs")


async def test_a_dry_run_writes_nothing_and_says_what_it_would() -> None:
    world, target = await random_world(1), target_topics(4)
    async with world.copier(target, dry_run=True) as dry:
        await dry.copy()
    assert target.jobs not in world.log.topics.specs
    async with world.copier(target) as copier:
        await copier.copy()
    assert dry.copied == copier.copied
    assert sum(copier.copied.lines.values()) > 100


# Records


def line_of(number: int, size: int, rules: int = 1, step: int = 1, time_ms: int = 5) -> CopiedLine:
    place = CopiedPlace(number * step, number * step, time_ms)
    return CopiedLine("job", b"x" * size, place, rules, 0)


def test_records_stay_within_what_a_topic_takes() -> None:
    lines = [line_of(number, 5_000) for number in range(400)]
    lines += [
        line_of(400 + number, 10, step=1 << 38, time_ms=1 << number % 40)
        for number in range(MAX_BUNDLE_LINES + 9)
    ]
    found = list(copied_records("c" * 200, 0, lines))
    assert b"\n".join(value for value, _ in found) == b"\n".join(line.data for line in lines)
    for value, headers in found:
        assert len(value) <= MAX_BUNDLE_BYTES
        assert value.count(b"\n") < MAX_BUNDLE_LINES
        assert len(value) + sum(len(name) + len(data) for name, data in headers) <= MAX_RECORD_BYTES


def test_a_record_follows_one_version_of_the_rules() -> None:
    lines = [line_of(number, 9, rules=1 + (number > 2)) for number in range(6)]
    assert [value.count(b"\n") + 1 for value, _ in copied_records("c", 0, lines)] == [3, 3]
    assert list(copied_records("c", 0, [])) == []


async def test_a_source_in_large_bundles_is_copied_in_few_records() -> None:
    world = World(Topics(namespace="source", partitions=1, work_partitions=2))
    await world.begin()
    for number in range(2_000):
        world.writers[0].enqueue(f"job-{number}")
    await world.write()
    target = target_topics(4)
    async with world.copier(target) as copier:
        await copier.copy()
        assert (sum(copier.copied.lines.values()), set(copier.copied.records.values())) == (2_000, {1})
        with pytest.raises(RecordTooLarge):
            await copier._append(0, b"x" * 2_000_000)


# Comparing


class Rows:
    """Rows of jobs as a fold has them."""

    def __init__(self, *jobs: Job) -> None:
        from penstock.core.rows import encode_row

        self.rows = sorted((b"j" + job.key.encode(), encode_row(job)) for job in jobs)

    def job_rows(self) -> Any:
        return iter(self.rows)


async def test_the_first_job_that_differs_is_found() -> None:
    jobs = sorted((await random_world(1)).jobs().values(), key=lambda job: job.key)
    changed = msgspec.structs.replace(jobs[3], attempt=99)
    whole, split = [Rows(*jobs)], [Rows(*jobs[::2]), Rows(*jobs[1::2])]
    assert first_difference(whole, split) is None
    assert totals(whole) == totals(split)
    found = first_difference(whole, [Rows(*jobs[:3], changed, *jobs[5:])])
    assert found is not None
    assert (found.key, found.fields()) == (jobs[3].key, {"attempt": (jobs[3].attempt, 99)})
    missing = first_difference([Rows(*jobs[1:])], split)
    assert missing is not None
    assert (missing.key, missing.a, missing.b, missing.fields()) == (jobs[0].key, None, jobs[0], {})
    end = first_difference(whole, [Rows(*jobs[:-1])])
    assert end is not None
    assert (end.key, end.b) == (jobs[-1].key, None)
