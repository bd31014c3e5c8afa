"""What is remembered of leases that are no longer held."""

from __future__ import annotations

from penstock.schemas.topics import HINT_RETENTION_MS
from penstock.workers.memory import FinishedLeases, Tombstones


def test_outcomes_are_kept_as_long_as_messages_may_come() -> None:
    finished = FinishedLeases()
    finished.remember("a", b"line", 1_000)
    finished.prune(1_000 + HINT_RETENTION_MS - 1)
    assert finished.line("a") == b"line"
    finished.prune(1_000 + HINT_RETENTION_MS)
    assert finished.line("a") is None


def test_the_oldest_go_when_there_are_too_many() -> None:
    finished = FinishedLeases(max_leases=2)
    for name in "abc":
        finished.remember(name, b"", 0)
    assert "a" not in finished
    assert len(finished) == 2


def test_bytes_are_bounded_and_a_large_line_is_known_but_not_kept() -> None:
    finished = FinishedLeases(max_bytes=6_400)
    finished.remember("large", b"x" * 101, 0)
    assert finished.line("large") == b""
    for number in range(100):
        finished.remember(str(number), b"x" * 100, 0)
    assert len(finished) == 64


def test_remembering_again_replaces() -> None:
    finished = FinishedLeases()
    finished.remember("a", b"1", 0)
    finished.remember("a", b"2", 5)
    assert finished.line("a") == b"2"
    assert len(finished) == 1


def test_a_tombstone_that_says_gone_stays_so() -> None:
    tombstones = Tombstones(max_leases=2)
    tombstones.put("a", "gone", "ended", 0)
    tombstones.put("a", "cancel", "", 0)
    assert tombstones.kind("a") == "gone"
    tombstones.put("b", "cancel", "", 0)
    tombstones.put("c", "cancel", "", 0)
    assert tombstones.kind("a") == ""
    tombstones.prune(HINT_RETENTION_MS)
    assert len(tombstones) == 0
