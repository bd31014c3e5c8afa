"""What an operation is asked for, and the jobs that operations are."""

from __future__ import annotations

from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from penstock.projections.port import JobFilter, JobView

OPERATION = "penstock.operation"
"""Queue and pool of the jobs that operations are, and the type of most."""

NEWER_OPERATION = "penstock.operation.2"
"""Type of those whose filter asks for what older versions do not know. They take no jobs of this type: they would pass
over what they do not know, and change jobs that nobody meant."""

OPERATION_TYPES = (OPERATION, NEWER_OPERATION)

Action = Literal["retry", "cancel", "delete", "move", "hold", "unhold", "priority", "requeue"]


class Order(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operation is asked for: the payload of its job. Either ``ids`` or a ``filter`` says which jobs."""

    action: Action
    ids: list[str] | None = None
    filter: JobFilter | None = None
    changes: dict[str, Any] = {}
    """Of the verb's event, beside its envelope."""
    dry_run: bool = False

    @property
    def job_type(self) -> str:
        """Of the job that asks for it."""
        return NEWER_OPERATION if self.filter is not None and self.filter.is_newer else OPERATION


def order_in(job: JobView) -> Order | None:
    """What a job asks for that is an operation; None for any other, also one that was only called so on the log."""
    if job.type not in OPERATION_TYPES:
        return None
    try:
        return msgspec.json.decode(cast("Any", job.payload), type=Order)
    except msgspec.ValidationError:
        return None
