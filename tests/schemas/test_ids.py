"""Ids, homes and partitions: the same as Kafka's Java client computes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas.ids import JOB_ID_PATTERN, exactly, home_of, job_key, murmur2, partition_of, ulid


@pytest.mark.parametrize(("text", "signed"), [
    ("21", -973932308),
    ("foobar", -790332482),
    ("a-little-bit-long-string", -985981536),
    ("a-little-bit-longer-string", -1486304829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ("abc", 479470107),
])  # fmt: skip
def test_murmur2_is_that_of_the_java_client(text: str, signed: int) -> None:
    assert murmur2(text.encode()) == signed & 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_murmur2_of_anything_fits_32_bits(data: bytes) -> None:
    assert 0 <= murmur2(data) < 1 << 32


def test_the_home_decides_the_partition() -> None:
    assert (home_of("a"), home_of("a~b")) == ("a", "b")
    assert partition_of("x~home", 16) == partition_of("y~home", 16) == partition_of("home", 16)
    assert [partition_of("foobar", partitions) for partitions in (1, 4, 16)] == [
        0, (-790332482 & 0x7FFFFFFF) % 4, (-790332482 & 0x7FFFFFFF) % 16,
    ]  # fmt: skip
    assert {partition_of(str(number), 4) for number in range(100)} == {0, 1, 2, 3}


def test_ulids_sort_by_time_then_entropy() -> None:
    ids = [
        ulid(time_ms, entropy)
        for time_ms in (0, 1, 1_700_000_000_000, (1 << 48) - 1)
        for entropy in (0, 1, (1 << 80) - 1)
    ]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {26}
    assert ids[0] == "0" * 26
    assert ids[-1] == "7" + "z" * 25
    assert ulid(1, 1 << 80) == ulid(1, 0)


@pytest.mark.parametrize(("job_id", "allowed"), [
    ("a", True), ("A.b_c:d-9", True), ("x" * 128, True), ("x~y", True), ("x" * 128 + "~" + "y" * 64, True),
    ("", False), ("x" * 129, False), ("~y", False), ("x~", False), ("x~y~z", False), ("x" + "~" + "y" * 65, False),
    ("a b", False), ("a/b", False), ("é", False), ("a\n", False),
])  # fmt: skip
def test_job_ids(job_id: str, allowed: bool) -> None:
    assert bool(re.search(exactly(JOB_ID_PATTERN), job_id)) == allowed


def test_jobs_of_two_tenants_have_two_names() -> None:
    assert job_key("acme", "j") == "acme/j" != job_key("other", "j")
