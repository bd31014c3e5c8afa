"""Ids of this process: sorted in the order they were made, whatever the clock does."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable

import pytest

from penstock.client.idgen import UlidSource, new_id, new_id_in, new_ids
from penstock.schemas.ids import JOB_ID_PATTERN, partition_of, ulid

ENTROPY = bytes(range(200, 210))


def source(times_ms: Iterable[int]) -> UlidSource:
    clock = iter(times_ms)
    return UlidSource(lambda: next(clock), lambda count: ENTROPY[:count])


def test_an_id_is_a_ulid_of_time_and_entropy():
    drawn = int.from_bytes(ENTROPY, "big")
    kept = drawn & ~(1 << 39)  # the low part starts in its lower half
    assert source([1_795_313_105_407]).next() == ulid(1_795_313_105_407, kept)


@pytest.mark.parametrize(
    "times_ms",
    [[5, 5, 5, 5], [5, 6, 7, 8], [9, 3, 9, 10], [0, 0, 1, 1], [2**48 - 2, 2**48 - 2, 2**48 - 1, 2**48 - 1]],
    ids=["one millisecond", "each its own", "the clock steps back", "from the epoch", "to the end of time"],
)
def test_ids_grow(times_ms: list[int]):
    made = source(times_ms)
    ids = [made.next() for _ in times_ms]
    assert ids == sorted(set(ids))


def test_ids_of_a_flood_grow_and_are_job_ids():
    ids = [new_id() for _ in range(20_000)]
    assert ids == sorted(set(ids))
    assert re.fullmatch(JOB_ID_PATTERN, ids[0])


def test_threads_never_make_the_same_id():
    found: list[list[str]] = []

    def make() -> None:
        found.append([new_id() for _ in range(2_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for ids in found for one in ids}) == 8_000
    assert all(ids == sorted(ids) for ids in found)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_draws_anew():
    first = new_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs, mine = os.read(reading, 26).decode(), new_id()
    os.close(reading)
    os.close(writing)
    # Counted on from the same draw, their entropy would begin alike.
    assert theirs[10:18] != mine[10:18]
    assert theirs[10:18] != first[10:18]


@pytest.mark.parametrize("partitions", [1, 4, 16, 64])
def test_an_id_for_a_partition_lives_there(partitions: int) -> None:
    made = [new_id_in(number % partitions, partitions) for number in range(600)]
    assert [partition_of(job, partitions) for job in made] == [number % partitions for number in range(600)]
    assert all(re.match(JOB_ID_PATTERN, job) and len(job) == 26 for job in made)


def test_ids_for_partitions_and_others_sort_as_they_were_made() -> None:
    standing_still = UlidSource(lambda: 1_795_313_105_407)
    made = [standing_still.next_in(3, 16) if number % 3 else standing_still.next() for number in range(3_000)]
    assert made == sorted(made)
    assert len(set(made)) == 3_000


@pytest.mark.parametrize("partitions", [1, 4, 16, 97])
def test_many_ids_come_with_their_partitions(partitions: int) -> None:
    found = new_ids(3_000, partitions)
    assert [partition_of(job_id, partitions) for job_id, _ in found] == [number for _, number in found]
    assert len({number for _, number in found}) == partitions


def test_many_ids_sort_among_the_others() -> None:
    made = source([1_795_313_105_407] * 4)
    ids = [
        made.next(),
        *(job_id for job_id, _ in made.next_many(2_500, 16)),
        made.next_in(3, 16),
        made.next(),
    ]
    assert ids == sorted(set(ids))
    assert len(ids) == 2_503
    assert all(re.fullmatch(JOB_ID_PATTERN, job_id) for job_id in ids)
    assert new_ids(0, 16) == []
