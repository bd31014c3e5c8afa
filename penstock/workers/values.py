"""What a handler may return, in place of a result, to say how its attempt ended.

An exception says that something went wrong; these say what is wanted::

    @task
    async def sync(feed: str) -> Snooze | int:
        if not await is_ready(feed):
            return Snooze(60_000, "the feed is not ready")
        return await load(feed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed: try again, after ``after_ms`` or, where None, by the job's backoff. Costs an attempt."""

    after_ms: int | None = None
    message: str = ""
    code: str = "retry"
    details: Any = None


@dataclass(frozen=True, slots=True)
class Snooze:
    """Put the job off by ``after_ms``, without a failure. Costs no attempt, so nothing bounds how often."""

    after_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """There is nothing to be done any more: the job is cancelled."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class PartError:
    """What of the work failed. ``details``: anything JSON can say, at most 16 KiB."""

    code: str
    message: str = ""
    details: Any = None


@dataclass(frozen=True, slots=True)
class Partial:
    """The job is done in part: it ends as ``partial``, with this result and up to 100 errors. Without errors it has
    succeeded."""

    result: Any = None
    errors: Sequence[PartError] = ()
