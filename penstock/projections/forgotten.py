"""Jobs that were forgotten since a moment, where they stood then: what a list as of that moment has besides those that
are still there.

Each is made from its history once; the newest few moments are remembered, for a list is asked for page by page, and
jobs that are forgotten meanwhile are added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock.log.kv import KeyValueStore
from penstock.projections.as_of import Life
from penstock.projections.candidates import ListKey
from penstock.projections.port import Moment
from penstock.projections.rows import FORGOTTEN, number
from penstock.schemas.errors import InvalidField

MOST_FORGOTTEN = 100_000
MOST_MOMENTS = 4
SLICE_JOBS = 100


@dataclass(slots=True)
class _Since:
    """What is known of one moment, as far as the row before ``next_row``."""

    next_row: bytes
    lives: int = 0
    places: dict[str, ListKey] = field(default_factory=dict[str, ListKey])


class ForgottenJobs:
    """Those of one partition.

    Args:
        life_at: a job as it was, by its key.
    """

    def __init__(self, kv: KeyValueStore, life_at: Callable[[str, Moment], Life | None]) -> None:
        self._kv = kv
        self._life_at = life_at
        self._moments: dict[Moment, _Since] = {}

    async def since(self, at: Moment) -> Mapping[str, ListKey]:
        """Places by job key, of those that were there at the moment. Others have their turns in between.

        Raises:
            InvalidField: more lives were forgotten since than are looked through.
        """
        known = self._moments.pop(at, None) or _Since(number(max(0, at.time_ms)))
        self._moments[at] = known
        while len(self._moments) > MOST_MOMENTS:
            del self._moments[next(iter(self._moments))]
        while self._go_on(known, at):
            if known.lives > MOST_FORGOTTEN:
                raise InvalidField(f"at: more than {MOST_FORGOTTEN} jobs were forgotten since", field="at")
            await asyncio.sleep(0)
        return known.places

    def _go_on(self, known: _Since, at: Moment) -> bool:
        """Look at some more; whether there may be others."""
        rows = list(self._kv.scan(FORGOTTEN, known.next_row, limit=SLICE_JOBS))
        for _, data in rows:
            key = data.decode()
            life = None if key in known.places else self._life_at(key, at)
            if life is not None:
                known.places[key] = life.job.created_at_ms, life.job.id
        if rows:
            known.next_row = rows[-1][0] + b"\0"
        known.lives += len(rows)
        return len(rows) == SLICE_JOBS or known.lives > MOST_FORGOTTEN
