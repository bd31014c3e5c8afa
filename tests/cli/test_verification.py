"""Verifying finds what is wrong, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec import to_builtins

from penstock.cli import verify_command
from penstock.cli.folders import ORCHESTRATOR, PROJECTION, StoredFold
from penstock.cli.verification import Expected, PartitionVerifier
from penstock.cli.verify_command import verify_log
from penstock.client.producer import LogProducer
from penstock.log.memory import MemoryLog
from penstock.log.namespace import Namespace, open_namespace
from penstock.log.port import Record
from penstock.projections.rebuild import rebuild_partition
from penstock.projections.service import ProjectionService
from penstock.schemas.position import Position
from penstock.schemas.topics import Topics
from penstock.state.audit import export, verify_export
from penstock.state.partition_store import PartitionStore, StoreIdentity
from tests.state.shelf import Shelf

LINE = b'{"type":"Enqueued","job":"j%d","job_type":"t"}'
TOPICS = Topics(partitions=2, work_partitions=2)


def records(count: int) -> list[Record]:
    return [
        Record(
            "jobs",
            0,
            number,
            1_000 + number,
            True,
            None,
            b'{"type":"Enqueued","job":"j%d","job_type":"t"}' % number,
        )
        for number in range(count)
    ]


def proof_of(found: list[Record], *expected: Expected):
    verifier = PartitionVerifier(0, 1, list(expected))
    for record in found:
        verifier.record(record)
    return verifier.finish()


class TestPartitionVerifier:
    def test_recorded_digests_are_compared_where_they_were_taken(self):
        whole = proof_of(records(6))
        half = proof_of(records(3))
        proof = proof_of(
            records(6),
            Expected(6, "a", whole.state_digest, whole.log_digest),
            Expected(3, "a", half.state_digest),
            Expected(3, "b", "", half.log_digest),
        )
        assert (proof.ok, proof.compared, proof.records, proof.lines, proof.accepted) == (True, 3, 6, 6, 6)
        assert half.state_digest != whole.state_digest

    def test_a_digest_of_another_place_is_a_mismatch(self):
        half = proof_of(records(3))
        proof = proof_of(records(6), Expected(4, "a", half.state_digest))
        assert (proof.ok, proof.compared) == (False, 0)
        assert "a: state digest below offset 4" in proof.problems[0]

    def test_a_wrong_log_digest_is_a_mismatch(self):
        whole = proof_of(records(2))
        proof = proof_of(records(2), Expected(2, "a", whole.state_digest, "00"))
        assert "a: log digest below offset 2" in proof.problems[0]

    def test_who_folded_more_than_there_is_folded_another_log(self):
        proof = proof_of(records(2), Expected(3, "a", "x"))
        assert proof.problems == ["a has folded up to offset 3, the log ends at 2"]

    def test_a_changed_record_changes_both_digests(self):
        changed = records(3)
        changed[1] = Record("jobs", 0, 1, 1_001, True, None, changed[1].value.replace(b"j1", b"jX"))
        right, wrong = proof_of(records(3)), proof_of(changed)
        assert right.state_digest != wrong.state_digest
        assert right.log_digest != wrong.log_digest

    def test_offsets_may_have_gaps(self):
        sparse = [record for record in records(6) if record.offset != 3]
        right = proof_of(sparse[:3])
        assert proof_of(sparse, Expected(4, "a", right.state_digest)).ok

    def test_what_is_refused_and_what_cannot_be_read_is_counted(self):
        garbage = Record("jobs", 0, 2, 1_002, True, None, b"\xff\nnonsense")
        again = Record(
            "jobs", 0, 3, 1_003, True, None, b'{"type":"Succeeded","id":"x","job":"j0","lease":"l"}'
        )
        proof = proof_of([*records(2), garbage, again])
        assert (proof.lines, proof.accepted, proof.refused, proof.quarantined) == (5, 2, 1, 2)


class Filled:
    """A log with jobs, and a projection folder made from it."""

    def __init__(self, log: MemoryLog, namespace: Namespace, data: Path) -> None:
        self.log = log
        self.namespace = namespace
        self.data = data

    async def produce(self, *names: str) -> None:
        async with LogProducer(self.log, TOPICS) as producer:
            await producer.enqueue_many([{"type": "t", "id": name} for name in names])

    async def project(self) -> None:
        for partition in range(TOPICS.partitions):
            await rebuild_partition(self.log, TOPICS, partition, PROJECTION.path(self.data))

    async def problems(self) -> list[str]:
        proofs = await verify_log(self.log, self.namespace, self.data)
        return [problem for proof in proofs for problem in proof.problems]


@pytest.fixture
async def filled(tmp_path: Path):
    async with MemoryLog() as log:
        found = Filled(log, await open_namespace(log, TOPICS), tmp_path)
        await found.produce(*(f"j{number}" for number in range(50)))
        await found.project()
        yield found


@pytest.mark.parametrize("value", [b"", b"\n", b"\n\n\n"], ids=["empty", "a blank line", "blank lines"])
async def test_an_export_covers_records_without_lines(tmp_path: Path, value: bytes):
    """They move a partition's time and end, and so its digest."""
    moments = iter(range(1_000, 100_000, 1_000))
    async with MemoryLog(now_ms=lambda: next(moments)) as log:
        namespace = await open_namespace(log, TOPICS)
        for record in (LINE % 1, value, LINE % 2, value):
            await log.append(TOPICS.jobs, 0, record)
        async with ProjectionService(
            log, TOPICS, tmp_path, generation=namespace.generation, store_factory=Shelf()
        ) as service:
            await service.wait({0: Position(0, 3, 0)}, 10_000)
            verifiers = {
                status.partition: verify_command._verifier(to_builtins(status), 2)
                for status in await service.status()
            }
        lines = b"".join([chunk async for chunk in export(log, TOPICS)]).splitlines()
    assert verify_export(verify_command._folding(lines, verifiers)).ok
    proof = verifiers[0].finish()
    assert (proof.problems, proof.records, proof.compared) == ([], 4, 1)


class TestVerifyLog:
    async def test_a_folder_that_agrees(self, filled: Filled):
        proofs = await verify_log(filled.log, filled.namespace, filled.data)
        assert [proof.ok for proof in proofs] == [True, True]
        assert [proof.compared for proof in proofs] == [1, 1]
        assert sum(proof.accepted for proof in proofs) == 50

    async def test_a_folder_that_is_behind_agrees_too(self, filled: Filled):
        await filled.produce("later")
        assert await filled.problems() == []

    async def test_without_folders_two_folds_are_compared(self, filled: Filled):
        shutil.rmtree(filled.data)
        proofs = await verify_log(filled.log, filled.namespace, filled.data)
        assert [(proof.ok, proof.compared) for proof in proofs] == [(True, 0), (True, 0)]

    async def test_a_damaged_row_is_found(self, filled: Filled):
        partition = next(number for number in range(2) if PROJECTION.exists(filled.data, number))
        identity = StoreIdentity(filled.log.cluster_id, TOPICS.jobs, partition, TOPICS.partitions)
        with PartitionStore.open(
            PROJECTION.store(filled.data, partition),
            identity=identity,
            extra=PROJECTION.families,
            layout=PROJECTION.layout,
        ) as store:
            key, row = next(iter(store.store.scan("fold", b"j", b"k")))
            batch = store.store.batch()
            batch.put("fold", key, row[:-1] + bytes([row[-1] ^ 1]))
            store.store.write(batch)
            store.store.flush()
        (problem,) = await filled.problems()
        assert problem.startswith("projection: the stored rows have digest")

    async def test_a_log_that_lost_its_beginning_is_not_verified(self, filled: Filled):
        await filled.produce(*(f"more{number}" for number in range(20)))
        await filled.log.truncate(TOPICS.jobs, 0, 1)
        assert any("its beginning is missing" in problem for problem in await filled.problems())

    async def test_a_folder_of_another_log_is_named(self, filled: Filled):
        async with MemoryLog(cluster_id="another") as log:
            proofs = await verify_log(log, await open_namespace(log, TOPICS), filled.data)
        folder = PROJECTION.path(filled.data)
        for proof in proofs:
            (problem,) = proof.problems
            assert problem.startswith(f"{folder}: The data folder was folded from another log: cluster_id")

    async def test_reading_a_folder(self, filled: Filled):
        found = StoredFold.read(PROJECTION, filled.data, filled.log, filled.namespace, 0)
        assert found.digest == found.recomputed
        assert [expected.source for expected in found.digests] == ["projection"]
        assert not ORCHESTRATOR.exists(filled.data, 0)
