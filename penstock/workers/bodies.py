"""Payloads and results that lie beside the log, as a worker meets them: brought before the handler runs, and taken
away when it has returned. See :mod:`penstock.schemas.claims`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from penstock.schemas.claims import Claim
from penstock.schemas.errors import ClaimsOff
from penstock.schemas.limits import CLAIM_ABOVE_BYTES, MAX_CLAIM_BYTES, MAX_RESULT_BYTES
from penstock.schemas.messages import Delivery

if TYPE_CHECKING:
    # Loaded only where there is one: its client takes a while.
    from penstock.log.claims import ClaimStore


class Bodies(Protocol):
    """Where a worker's large bodies are."""

    @property
    def max_result_bytes(self) -> int:
        """A larger result fails its attempt."""
        ...

    async def payload(self, delivery: Delivery, claim: Claim) -> bytes:
        """The payload that a claim stands for.

        Raises:
            PenstockError: it cannot be had; ``ClaimMissing`` and ``ClaimDamaged``: not by trying again either.
        """
        ...

    async def result(self, delivery: Delivery, result: bytes) -> bytes:
        """What to say for a result: itself, or the claim that stands for it.

        Raises:
            BlobsUnavailable: it is not kept.
        """
        ...

    @property
    def keeps_output(self) -> bool:
        """Whether what handlers log is kept."""
        ...

    async def output(self, delivery: Delivery, number: int, lines: bytes) -> None:
        """Keep a part of what an attempt logged, NDJSON; parts are numbered from 0.

        Raises:
            ClaimsOff: nobody keeps it.
            PenstockError: it is not kept yet.
        """
        ...


class InlineBodies:
    """Everything is on the log."""

    max_result_bytes = MAX_RESULT_BYTES
    keeps_output = False

    async def payload(self, delivery: Delivery, claim: Claim) -> bytes:
        raise ClaimsOff(
            "The payload lies beside the log, and this worker was not told where (PENSTOCK_CLAIMS)."
        )

    async def result(self, delivery: Delivery, result: bytes) -> bytes:
        return result

    async def output(self, delivery: Delivery, number: int, lines: bytes) -> None:
        raise ClaimsOff


class PassedOn(InlineBodies):
    """In a child process: its parent sees to them."""

    max_result_bytes = MAX_CLAIM_BYTES


class StoredBodies:
    """Large ones are in a store."""

    keeps_output = True

    def __init__(self, store: ClaimStore) -> None:
        self._store = store

    @property
    def max_result_bytes(self) -> int:
        return max(self._store.max_bytes, CLAIM_ABOVE_BYTES)

    async def payload(self, delivery: Delivery, claim: Claim) -> bytes:
        return await self._store.read(delivery.tenant, delivery.job, claim)

    async def result(self, delivery: Delivery, result: bytes) -> bytes:
        if len(result) <= CLAIM_ABOVE_BYTES:
            return result
        return await self._store.keep(delivery.tenant, delivery.job, result)

    async def output(self, delivery: Delivery, number: int, lines: bytes) -> None:
        await self._store.keep_output(
            delivery.tenant, delivery.job, delivery.attempt, int(delivery.fence), number, lines
        )
