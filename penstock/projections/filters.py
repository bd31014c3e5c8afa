"""Which jobs a search means: what may be asked of each, and how one job is judged.

Most questions are answered by the job's row in the fold. Only what asks for errors or bodies has to look at more, and
that is looked at last, for jobs that pass otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from penstock.core.job_state import Job
from penstock.projections.port import JobFilter
from penstock.projections.views import ErrorRow

_TIMES = (
    ("created", "created_at_ms"),
    ("scheduled", "scheduled_at_ms"),
    ("started", "started_at_ms"),
    ("finished", "finished_at_ms"),
    ("expires", "expires_at_ms"),
)

Test = Callable[[Job], bool]


def row_test(wanted: JobFilter) -> Test:
    """What a job's row has to pass: all but what is asked about its errors and bodies."""
    tests = [*_tests_of_names(wanted), *_tests_of_times(wanted)]
    if wanted.attempt_min is not None:
        least = wanted.attempt_min
        tests.append(lambda job: job.attempt >= least)
    if wanted.attempt_max is not None:
        most = wanted.attempt_max
        tests.append(lambda job: job.attempt <= most)

    def test(job: Job) -> bool:
        return job.state != "deleted" and all(one(job) for one in tests)

    return test


def _tests_of_names(wanted: JobFilter) -> list[Test]:
    tests: list[Test] = []
    for name, attribute in (
        ("state", "state"), ("queue", "queue"), ("pool", "pool"), ("type", "job_type"), ("priority", "priority"),
        ("worker", "worker"), ("batch", "batch"), ("workflow", "workflow"),
    ):  # fmt: skip
        values = frozenset(getattr(wanted, name))
        if values:
            tests.append(_one_of(attribute, values))
    if wanted.tags:
        needed = frozenset(wanted.tags)
        tests.append(lambda job: needed.issubset(job.tags))
    if wanted.tags_any:
        some = frozenset(wanted.tags_any)
        tests.append(lambda job: not some.isdisjoint(job.tags))
    if wanted.unique_key:
        tests.append(lambda job: job.unique_key == wanted.unique_key)
    if wanted.concurrency_key:
        tests.append(lambda job: job.concurrency_key == wanted.concurrency_key)
    if wanted.id_prefix:
        tests.append(lambda job: job.id.startswith(wanted.id_prefix))
    return tests


def _one_of(attribute: str, values: frozenset[str]) -> Test:
    return lambda job: getattr(job, attribute) in values


def _tests_of_times(wanted: JobFilter) -> list[Test]:
    tests: list[Test] = []
    for name, attribute in _TIMES:
        after_ms, before_ms = getattr(wanted, f"{name}_after"), getattr(wanted, f"{name}_before")
        if after_ms is not None or before_ms is not None:
            tests.append(_between(attribute, after_ms or 1, before_ms))
    return tests


def _between(attribute: str, after_ms: int, before_ms: int | None) -> Test:
    def test(job: Job) -> bool:
        time_ms = getattr(job, attribute)
        return time_ms >= after_ms and (before_ms is None or time_ms < before_ms)

    return test


class Inside(NamedTuple):
    """What a search looks at inside a job. ``payload`` is as it was written; ``errors`` are those kept."""

    job: Job
    payload: bytes
    errors: Sequence[ErrorRow]


def searched_text(inside: Inside) -> str:
    """What ``text`` is looked for in, case folded. Whatever is found in a payload or an error is found here too."""
    texts = [inside.payload.decode("utf-8", "replace"), inside.job.job_type, *inside.job.tags]
    for error in inside.errors:
        texts += [error.code, error.message]
    return "\n".join(texts).casefold()


def passes_inside(wanted: JobFilter, job: Inside) -> bool:
    """Whether a job's errors and bodies are as asked for."""
    if wanted.has_errors is not None and bool(job.errors) != wanted.has_errors:
        return False
    if wanted.payload_contains and wanted.payload_contains.encode() not in job.payload:
        return False
    if wanted.error_contains and not any(
        wanted.error_contains in error.code or wanted.error_contains in error.message for error in job.errors
    ):
        return False
    if not wanted.text:
        return True
    whole = searched_text(job)
    return all(word in whole for word in wanted.text.casefold().split())
