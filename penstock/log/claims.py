"""The store of bodies that are too large for the log. See :mod:`penstock.schemas.claims`.

A body is in the store before the line with its claim is appended, so that no reader of the log meets a claim without
it. What is put again under the same name is the same: a call that is repeated does no harm. A line that was not
appended after all leaves an object that no claim names; ``penstock claims sweep`` takes it away, and those of jobs
that are forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from penstock.log.blobs import Blobs
from penstock.schemas.claims import Claim, body_of, claim_key, claimant_of, output_key, output_prefix
from penstock.schemas.errors import BlobMissing, ClaimDamaged, ClaimMissing, TooLarge
from penstock.schemas.limits import DEFAULT_CLAIM_BYTES

AT_ONCE = 16
"""Bodies on their way to or from the store at the same time."""

_HASHED_IN_THREAD_BYTES = 1024 * 1024


class StoredBody(NamedTuple):
    """One object as listed; ``modified_ms`` is the store's clock."""

    tenant: str
    job: str
    key: str
    size_bytes: int
    modified_ms: int


class ClaimStore:
    """Puts bodies into the store and gets them back, compared with their claims.

    Args:
        max_bytes: larger bodies are refused.
    """

    def __init__(self, blobs: Blobs, max_bytes: int = DEFAULT_CLAIM_BYTES) -> None:
        self.blobs = blobs
        self.max_bytes = max_bytes
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def keep(self, tenant: str, job: str, body: bytes) -> bytes:
        """Store a body of ``job``; returns the claim that stands for it on the line.

        Raises:
            TooLarge: it has more than ``max_bytes``.
            BlobsUnavailable: it is not stored, or nobody knows.
        """
        if len(body) > self.max_bytes:
            raise TooLarge(f"{len(body)} bytes, at most {self.max_bytes} are kept")
        async with self._slots:
            claim = Claim(await _sha256(body), len(body))
            await self.blobs.put(claim_key(tenant, job, claim.sha256), body)
        return body_of(claim)

    async def read(self, tenant: str, job: str, claim: Claim) -> bytes:
        """The body of ``job`` that a claim stands for.

        Raises:
            ClaimMissing: it is not in the store.
            ClaimDamaged: what is there is not what was written.
            BlobsUnavailable: the store does not answer.
        """
        async with self._slots:
            try:
                body = await self.blobs.get(claim_key(tenant, job, claim.sha256))
            except BlobMissing as error:
                raise ClaimMissing(
                    f"The body of job {job} with the SHA-256 {claim.sha256} is not in {self.blobs.url}.",
                    job_id=job,
                ) from error
            if difference := await _difference(body, claim):
                raise ClaimDamaged(
                    f"What {self.blobs.url} has for job {job} of the tenant {tenant} is not what was written:"
                    f" {difference}.",
                    job_id=job,
                )
        return body

    async def keep_output(
        self, tenant: str, job: str, attempt: int, fence: int, number: int, lines: bytes
    ) -> None:
        """Store a part of what an attempt logged, as NDJSON; the same part again replaces it.

        Args:
            fence: its holder's.
            number: of the part, among those of this holder.

        Raises:
            BlobsUnavailable: it is not stored, or nobody knows.
        """
        async with self._slots:
            await self.blobs.put(output_key(tenant, job, attempt, fence, number), lines)

    async def output(self, tenant: str, job: str, attempt: int) -> bytes:
        """All that an attempt logged, as far as it is stored, as NDJSON. Raises BlobsUnavailable."""
        parts = await self.blobs.list(output_prefix(tenant, job, attempt))

        async def part(key: str) -> bytes:
            async with self._slots:
                return await self.blobs.get(key)

        return b"".join(await asyncio.gather(*(part(info.key) for info in parts)))

    async def objects(self) -> list[StoredBody]:
        """Everything that is there. Raises BlobsUnavailable."""
        found: list[StoredBody] = []
        for blob in await self.blobs.list():
            claimant = claimant_of(blob.key)
            if claimant is not None:
                found.append(StoredBody(*claimant, blob.key, blob.size_bytes, blob.modified_ms))
        return found

    async def delete(self, bodies: Iterable[StoredBody]) -> None:
        """Take bodies away. Raises BlobsUnavailable: some may be gone."""
        await self.blobs.delete([body.key for body in bodies])


async def _difference(body: bytes, claim: Claim) -> str:
    """What of a body is not as its claim says; empty if all is."""
    if len(body) != claim.size_bytes:
        return f"it has {len(body)} bytes, and not {claim.size_bytes}"
    found = await _sha256(body)
    return "" if found == claim.sha256 else f"its SHA-256 is {found}, and not {claim.sha256}"


async def _sha256(body: bytes) -> str:
    if len(body) < _HASHED_IN_THREAD_BYTES:
        return hashlib.sha256(body).hexdigest()
    # A large one would hold up the event loop; hashing lets go of the interpreter.
    return (await asyncio.to_thread(hashlib.sha256, body)).hexdigest()
