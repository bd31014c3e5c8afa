"""How often commits come that nobody waits for."""

from __future__ import annotations

from penstock.state.pacing import LONGEST_MS, QUIET_MS, CommitPace


def test_cheap_commits_come_soon() -> None:
    pace = CommitPace(stores=8)
    assert pace.wait_ms == QUIET_MS
    for _ in range(100):
        pace.took(0.1)
    assert pace.wait_ms == QUIET_MS


def test_dear_commits_come_rarely_and_never_too_rarely() -> None:
    pace = CommitPace(stores=4)
    for _ in range(100):
        pace.took(10.0)
    # Four stores of 10 ms each in a fifth of the time.
    assert 195 <= pace.wait_ms <= 200
    for _ in range(100):
        pace.took(10_000.0)
    assert pace.wait_ms == LONGEST_MS


def test_it_recovers_from_a_commit_that_was_slow_by_chance() -> None:
    pace = CommitPace(stores=1)
    pace.took(500.0)
    assert pace.wait_ms > QUIET_MS
    for _ in range(40):
        pace.took(0.5)
    assert pace.wait_ms == QUIET_MS
