"""When the next attempt may start. Integer arithmetic only, so that every folder on every machine agrees."""

from __future__ import annotations

from hashlib import sha256

from penstock.schemas.events import Backoff


def delay_ms(policy: Backoff, job_key: str, attempt: int) -> int:
    """Milliseconds to wait after ``attempt`` (1 for the first) has failed.

    Jitter spreads the delay evenly over ``± jitter``; the dice are a hash of the job's key and the attempt.
    """
    if policy.kind == "none":
        return 0
    delay = min(_without_jitter(policy, max(1, attempt)), policy.max_ms)
    spread = delay * round(policy.jitter * 1_000_000) // 1_000_000
    if spread:
        dice = int.from_bytes(sha256(f"backoff/{job_key}#{attempt}".encode()).digest()[:8], "big")
        delay += dice % (2 * spread + 1) - spread
    return min(delay, policy.max_ms)


def _without_jitter(policy: Backoff, attempt: int) -> int:
    if policy.kind == "fixed":
        return policy.base_ms
    if policy.kind == "linear":
        return policy.base_ms * attempt
    factor_milli = round(policy.factor * 1_000)
    if factor_milli == 1_000:
        return policy.base_ms
    # In nanoseconds, or the fractions of small delays would be lost at every step and 1 ms never grow.
    delay_ns, longest_ns = policy.base_ms * 1_000_000, policy.max_ms * 1_000_000
    for _ in range(attempt - 1):
        if delay_ns >= longest_ns or delay_ns == 0:
            break
        delay_ns = delay_ns * factor_milli // 1_000
    return delay_ns // 1_000_000
