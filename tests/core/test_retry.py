"""Delays before the next attempt: golden, for they are part of every fold's state."""

from __future__ import annotations

import pytest

from penstock.core.retry import delay_ms
from penstock.schemas.events import Backoff

KEY = "default/a"


@pytest.mark.parametrize(("policy", "delays"), [
    (Backoff(kind="none", base_ms=1_000), [0, 0, 0]),
    (Backoff(kind="fixed", base_ms=1_000, jitter=0), [1_000, 1_000, 1_000]),
    (Backoff(kind="linear", base_ms=1_000, jitter=0), [1_000, 2_000, 3_000, 4_000]),
    (Backoff(kind="linear", base_ms=1_000, max_ms=2_500, jitter=0), [1_000, 2_000, 2_500, 2_500]),
    (Backoff(kind="exponential", base_ms=1_000, jitter=0), [1_000, 2_000, 4_000, 8_000, 16_000]),
    (Backoff(kind="exponential", base_ms=1_000, factor=1.5, jitter=0), [1_000, 1_500, 2_250, 3_375, 5_062]),
    (Backoff(kind="exponential", base_ms=1, factor=1.5, jitter=0), [1, 1, 2, 3, 5, 7, 11]),
    (Backoff(kind="exponential", base_ms=100, factor=1.0, jitter=0), [100, 100, 100]),
    (Backoff(kind="exponential", base_ms=100, factor=100.0, max_ms=5_000, jitter=0), [100, 5_000, 5_000]),
    (Backoff(kind="exponential", base_ms=0, jitter=0), [0, 0, 0]),
    (Backoff(kind="fixed", base_ms=900_000, jitter=0), [600_000]),
    (Backoff(kind="fixed", base_ms=1_000, max_ms=0), [0]),
    # Jitter: dice from the job's key and the attempt, the same for ever and everywhere.
    (Backoff(), [903, 1803, 4316, 8514, 16555, 31788, 58152, 115875, 257353, 526031, 600000, 592996]),
    (Backoff(kind="fixed", base_ms=1_000, jitter=1.0), [606, 1565, 740, 1954, 868]),
    (Backoff(kind="linear", base_ms=1_000, jitter=0.5), [1421, 2565, 2713, 5240, 6161]),
])  # fmt: skip
def test_delays(policy: Backoff, delays: list[int]) -> None:
    assert [delay_ms(policy, KEY, attempt) for attempt in range(1, len(delays) + 1)] == delays


def test_jobs_that_failed_together_do_not_return_together() -> None:
    policy = Backoff(kind="fixed", base_ms=10_000, jitter=0.2)
    delays = [delay_ms(policy, f"default/{number}", 1) for number in range(500)]
    assert min(delays) >= 8_000
    assert max(delays) <= 12_000
    assert len(set(delays)) > 400
    assert 9_800 < sum(delays) / len(delays) < 10_200


def test_a_thousandth_attempt_is_no_later_than_the_cap() -> None:
    assert delay_ms(Backoff(base_ms=1, factor=1.001, jitter=0), KEY, 1_000) == 2
    assert delay_ms(Backoff(jitter=1.0), KEY, 1_000) <= 600_000


@pytest.mark.parametrize("attempt", [-1, 0])
def test_what_is_no_attempt_counts_as_the_first(attempt: int) -> None:
    assert delay_ms(Backoff(jitter=0), KEY, attempt) == 1_000
