"""What a caller may say about which jobs are meant: the ``filter`` of a search and of an operation on many jobs."""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from penstock.api.intake import TENANT
from penstock.api.models import ShortText
from penstock.client.enqueued import time_ms
from penstock.client.requests import Moment
from penstock.core.job_state import State
from penstock.projections.port import JobFilter
from penstock.schemas.events import Count, Priority
from penstock.schemas.names import CheckedName

MOST_VALUES = 100

# What is empty would match all jobs, as a filter that is not there does, and an operation would change them.
SOME = Meta(min_length=1, max_length=MOST_VALUES)

Names = CheckedName | Annotated[list[CheckedName], SOME]
States = State | Annotated[list[State], SOME]
Priorities = Priority | Annotated[list[Priority], SOME]
Workers = ShortText | Annotated[list[ShortText], SOME]


class FilterRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job matches when all that is given does; where one field has several values, any of them will do.

    ``tags`` must be there all, of ``tags_any`` one. ``_after`` includes the moment, ``_before`` does not.
    ``error_contains`` is looked for in codes and messages of its errors, ``payload_contains`` in the payload as JSON,
    and each word of ``text`` in these, in the type and in the tags, whatever its case.
    """

    tenant: Literal["default"] = TENANT
    state: States | None = None
    queue: Names | None = None
    pool: Names | None = None
    type: Names | None = None
    priority: Priorities | None = None
    tags: Names | None = None
    tags_any: Names | None = None
    worker: Workers | None = None
    batch: Names | None = None
    workflow: Names | None = None
    unique_key: ShortText | None = None
    concurrency_key: ShortText | None = None
    id_prefix: ShortText | None = None
    attempt_min: Count | None = None
    attempt_max: Count | None = None
    has_errors: bool | None = None
    error_contains: ShortText | None = None
    payload_contains: ShortText | None = None
    text: ShortText | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    scheduled_after: Moment | None = None
    scheduled_before: Moment | None = None
    started_after: Moment | None = None
    started_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    expires_after: Moment | None = None
    expires_before: Moment | None = None

    def plain(self) -> JobFilter:
        """As the read model takes it. Raises InvalidField for a time outside the years 1970 to 9999."""
        given: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "tenant":
                given[field.name] = _plain(field.name, value)
        return JobFilter(**given)


def given_in(parameters: Struct, others: Collection[str]) -> dict[str, Any]:
    """What query parameters say about jobs: all that were given but ``others``, by name."""
    return {
        name: value
        for name in parameters.__struct_fields__
        if name not in others and (value := getattr(parameters, name)) is not None
    }


_SEVERAL = frozenset(
    {"state", "queue", "pool", "type", "priority", "tags", "tags_any", "worker", "batch", "workflow"}
)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return time_ms(name, value)
    if name in _SEVERAL:
        return (value,) if isinstance(value, str) else tuple(value)
    return value
