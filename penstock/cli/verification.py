"""Proof that a log's fold is what it is said to be: the log is folded anew, twice, and every digest is compared.

The two folds differ in how they batch: one takes its changes after every record, the other as rarely as it can.
State digests that the read model, an orchestrator or a server recorded are compared at the offset they were taken at.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock.core.partition import PartitionFold
from penstock.log.port import Record
from penstock.schemas.copies import copy_header
from penstock.state.chain import FIRST_LINK, next_link

RARELY_RECORDS = 2_048


class Expected(NamedTuple):
    """A digest that somebody recorded: of everything below ``offset``. Hex; an empty one is not compared."""

    offset: int
    source: str
    state: str
    log: str = ""


@dataclass(slots=True)
class PartitionProof:
    """What verifying a partition found. ``compared`` counts digests that were equal, ``problems`` says what was not."""

    partition: int
    records: int = 0
    lines: int = 0
    accepted: int = 0
    refused: int = 0
    quarantined: int = 0
    state_digest: str = ""
    log_digest: str = ""
    """Hash chain over the raw records; empty where only their lines are known."""
    export_chain: str = ""
    """Last hash of the export's chain, where the log was read through one."""
    compared: int = 0
    problems: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        return not self.problems


class _Refold:
    """One fold in memory, from nothing."""

    def __init__(self, partition: int, partitions: int) -> None:
        self._rows: dict[bytes, bytes] = {}
        self.fold = PartitionFold(partition, partitions, self._rows.get)

    def digest(self) -> str:
        changes = self.fold.take_changes()
        for row, data in changes.rows:
            if data is None:
                self._rows.pop(row, None)
            else:
                self._rows[row] = data
        return changes.digest.to_bytes(32, "big").hex()


class PartitionVerifier:
    """Folds a partition's records, in order and from the first, and compares.

    Args:
        expected: recorded digests, in any order.
    """

    def __init__(self, partition: int, partitions: int, expected: list[Expected]) -> None:
        self.proof = PartitionProof(partition)
        self._often = _Refold(partition, partitions)
        self._rarely = _Refold(partition, partitions)
        self._expected = list(expected)
        heapq.heapify(self._expected)
        self._log_digest = FIRST_LINK
        self._next_offset = 0

    def record(self, record: Record) -> None:
        """Take the next record. Raises UnknownRules."""
        while self._expected and self._expected[0].offset <= record.offset:
            self._compare(heapq.heappop(self._expected))
        proof = self.proof
        copied = copy_header(record.headers)
        place = (record.offset, record.time_ms, record.append_time, record.value, copied)
        proof.lines += len(self._often.fold.fold(*place))
        self._often.digest()
        self._rarely.fold.fold(*place)
        proof.records += 1
        if proof.records % RARELY_RECORDS == 0:
            # Only so that memory stays bounded.
            self._rarely.digest()
        self._log_digest = next_link(self._log_digest, record.offset, record.value)
        self._next_offset = record.offset + 1

    def finish(self) -> PartitionProof:
        """After the last record."""
        proof = self.proof
        while self._expected:
            expected = heapq.heappop(self._expected)
            if expected.offset > self._next_offset:
                proof.problems.append(
                    f"{expected.source} has folded up to offset {expected.offset}, the log ends at {self._next_offset}"
                )
            else:
                self._compare(expected)
        proof.state_digest = self._agreed()
        proof.log_digest = self._log_digest.hex()
        state = self._often.fold.state
        proof.accepted, proof.refused, proof.quarantined = state.accepted, state.refused, state.quarantined
        return proof

    def _agreed(self) -> str:
        often, rarely = self._often.digest(), self._rarely.digest()
        if often != rarely:
            self.proof.problems.append(
                f"two folds disagree below offset {self._next_offset}: {often} and {rarely}"
            )
        return often

    def _compare(self, expected: Expected) -> None:
        proof = self.proof
        found = self._agreed()
        if expected.state and expected.state != found:
            proof.problems.append(
                f"{expected.source}: state digest below offset {expected.offset} is {expected.state}, not {found}"
            )
        elif expected.log and expected.log != self._log_digest.hex():
            proof.problems.append(
                f"{expected.source}: log digest below offset {expected.offset} is {expected.log},"
                f" not {self._log_digest.hex()}"
            )
        else:
            proof.compared += 1
