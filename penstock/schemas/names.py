"""What job ids and names must look like, on a line of the log and at the edges.

On the log every line names a job, so the check is made to be cheap: most ids are plain letters and digits, and names
are few and come again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Annotated

from msgspec import Meta

from penstock.schemas.events import AnyEvent, Enqueued, JobEvent
from penstock.schemas.ids import JOB_ID_PATTERN, NAME_PATTERN, exactly

CheckedJobId = Annotated[str, Meta(pattern=exactly(JOB_ID_PATTERN))]
CheckedName = Annotated[str, Meta(pattern=exactly(NAME_PATTERN))]
"""For what does not come from the log: refused while it is decoded."""

_is_job_id = re.compile(exactly(JOB_ID_PATTERN)).search
_PLAIN_CHARS = 128

_NAMED = ("job_type", "queue", "pool")
_names_of = attrgetter(*_NAMED)
"""Of an ``Enqueued``."""
_GROUPS = ("batch", "workflow")
"""Of an ``Enqueued`` too; they may be empty."""


@lru_cache(maxsize=4_096)
def _is_name(text: str) -> bool:
    return re.search(exactly(NAME_PATTERN), text) is not None


def misnamed(event: AnyEvent) -> str:
    """The first field of an event that is not the name it has to be; empty if all are."""
    job = event.job
    plain = job.isalnum() and job.isascii() and len(job) <= _PLAIN_CHARS
    if not plain and isinstance(event, JobEvent) and not _is_job_id(job):
        return "job"
    if type(event) is Enqueued:
        for field, name in zip(_NAMED, _names_of(event), strict=True):
            if not _is_name(name):
                return field
        if event.tags and not all(map(_is_name, event.tags)):
            return "tags"
        for field in _GROUPS:
            name = getattr(event, field)
            if name and not _is_name(name):
                return field
    return ""


def any_misnamed(events: Sequence[AnyEvent]) -> bool:
    """Whether one of many events is: looked at together, for most of them are alike."""
    jobs = [event.job for event in events]
    joined = "".join(jobs)
    if not (joined.isalnum() and joined.isascii() and all(jobs) and max(map(len, jobs)) <= _PLAIN_CHARS):
        return any(map(misnamed, events))
    names: set[str] = set()
    for event in events:
        if type(event) is Enqueued:
            names.update(_names_of(event), event.tags)
            if event.batch or event.workflow:
                names.update(filter(None, (event.batch, event.workflow)))
    return not all(map(_is_name, names))
