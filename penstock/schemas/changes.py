"""What of a waiting job may be changed: the content of an ``Edited``.

It stands on the line as plain JSON, so that a line with changes that only later rules know is refused as a verb, and
not quarantined as garbage.
"""

# No `from __future__ import annotations`: msgspec reads these hints at run time.

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from penstock.schemas.events import DurationMs, Priority, TimeMs
from penstock.schemas.names import CheckedName


class Changes(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is to be otherwise; what is left out stays. Times are Unix ms, 0 is none."""

    priority: Priority | UnsetType = UNSET
    queue: CheckedName | UnsetType = UNSET
    pool: CheckedName | UnsetType = UNSET
    run_at: TimeMs | UnsetType = UNSET
    delay_ms: DurationMs | UnsetType = UNSET
    """Counted from the record's own time; the later of it and ``run_at`` holds."""
    expires_at: TimeMs | UnsetType = UNSET
    timeout_ms: DurationMs | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    """At least one more than were made stays, whatever is asked for."""

    @property
    def reschedules(self) -> bool:
        """Whether they say when the job is to run."""
        return self.run_at is not UNSET or self.delay_ms is not UNSET


_NOTHING = Changes()
_decode = msgspec.json.Decoder(Changes).decode


def decode_changes(raw: Raw) -> Changes | None:
    """The changes that a line asks for; None where there are none, or what stands there is not changes."""
    try:
        changes = _decode(raw)
    except msgspec.DecodeError:
        return None
    return None if changes == _NOTHING else changes
