from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from msgspec import Raw

from penstock.core import rows
from penstock.core.partition import Folded, PartitionFold
from penstock.core.rows import DIGEST_MODULUS, row_digest
from penstock.log.kv import Batch
from penstock.log.memory import MemoryLog
from penstock.log.port import Record, TopicSpec
from penstock.log.store_memory import MemoryStore
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.errors import HistoryChanged, OffsetBeyondEnd, OffsetTrimmed, UnknownRules
from penstock.schemas.limits import DIGEST_EVERY_OFFSETS
from penstock.state.bodies import BODY_KINDS
from penstock.state.partition_store import PartitionStore, StoreFactory, StoreIdentity
from tests.core.newer_rules import NEXT, activations
from tests.state.strategies import cuts, ops
from tests.state.writing import TOPIC, Op, Writer

IDENTITY = StoreIdentity("memory", TOPIC, 0, 1)


def in_memory() -> PartitionStore:
    return PartitionStore(MemoryStore(("fold", "bodies", "meta")), IDENTITY)


def fold_all(store: PartitionStore, records: Iterable[Record], commit_after: Sequence[int] = (1,)) -> None:
    left = 0
    lengths = cycle(commit_after)
    for record in records:
        if left == 0:
            store.commit()
            left = next(lengths)
        store.fold(record)
        left -= 1
    store.commit()


def digest_of_rows(store: PartitionStore) -> str:
    total = sum(row_digest(key, value) for key, value in store.store.scan("fold"))
    return (total % DIGEST_MODULUS).to_bytes(32, "big").hex()


def whole(store: PartitionStore) -> object:
    """All that is stored."""
    assert isinstance(store.store, MemoryStore)
    return store.store.dump()


@given(ops, cuts)
def test_what_is_stored_does_not_depend_on_when_it_is_committed(
    played: list[Op], commit_after: list[int]
) -> None:
    records = Writer().play(played)
    one_by_one, batched = in_memory(), in_memory()
    fold_all(one_by_one, records)
    fold_all(batched, records, commit_after)
    assert whole(batched) == whole(one_by_one)
    assert batched.digest == digest_of_rows(batched) == batched.recompute_digest()


@given(ops, cuts)
def test_a_store_that_died_goes_on_to_the_same_state(played: list[Op], commit_after: list[int]) -> None:
    """Reopened after every commit, with records folded and lost in between."""
    records = Writer().play(played)
    straight = in_memory()
    fold_all(straight, records, (1_000,))
    store, lengths = in_memory(), cycle(commit_after)
    while store.next_offset <= records[-1].offset:
        rest = [record for record in records if record.offset >= store.next_offset]
        length = next(lengths)
        for record in rest[:length]:
            store.fold(record)
        store.commit()
        for record in rest[length : length + 2]:
            store.fold(record)
        assert isinstance(store.store, MemoryStore)
        store = PartitionStore(MemoryStore.load(store.store.dump()), IDENTITY)
    assert whole(store) == whole(straight)
    assert store.digest == straight.digest
    assert store.log_digest == straight.log_digest
    assert store.recorded_digests == straight.recorded_digests


@given(ops)
def test_bodies_follow_their_jobs(played: list[Op]) -> None:
    """Whatever the job's row has a hash of is there, and nothing else."""
    store = in_memory()
    fold_all(store, Writer().play(played), (3,))
    expected: set[bytes] = set()
    for key, job in store.committed_jobs():
        hashes = (job.payload_hash, job.metadata_hash, job.checkpoint_hash, job.result_hash)
        for kind, wanted in zip(BODY_KINDS, hashes, strict=True):
            body = store.body(key, kind)
            assert (b"" if body is None else sha256(body).digest()) == wanted
            if wanted:
                expected.add(key.encode() + b"\0" + kind[:1].encode())
    assert {key for key, _ in store.store.scan("bodies")} == expected


def test_reads_see_what_is_folded_and_not_yet_committed(tmp_path: Path, store_factory: StoreFactory) -> None:
    writer = Writer()
    writer.enqueue("a", payload=Raw(b'{"x":1}'))
    writer.run("a", result=b"[1]")
    writer.end_record()
    with PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory) as store:
        for record in writer.records:
            store.fold(record)
        job = store.job("default/a")
        assert job is not None
        assert job.state == "succeeded"
        assert store.body("default/a", "payload") == b'{"x":1}'
        assert store.bodies([("default/a", "result"), ("default/a", "metadata")]) == [b"[1]", None]
        assert list(store.committed_jobs()) == []
        assert (store.next_offset, store.committed_offset) == (3, 0)
        store.commit()
        assert [key for key, _ in store.committed_jobs()] == ["default/a"]
        assert store.committed_offset == 3
        assert store.touched == store.pending_bytes == 0


def test_a_record_that_was_folded_is_ignored() -> None:
    writer = Writer()
    writer.enqueue("a")
    writer.end_record()
    store = in_memory()
    assert [len(store.fold(record)) for record in writer.records] == [1, 1]
    assert [store.fold(record) for record in writer.records] == [[], []]


def test_digests_are_recorded_at_the_first_record_past_each_boundary() -> None:
    store, log = in_memory(), b"\0" * 32
    by_hand: dict[int, str] = {}
    link: dict[int, str] = {}
    for offset in (0, DIGEST_EVERY_OFFSETS - 1, DIGEST_EVERY_OFFSETS + 5, DIGEST_EVERY_OFFSETS * 4):
        value = b'{"type":"Enqueued","job":"j%d","job_type":"t"}' % offset
        boundary = offset - offset % DIGEST_EVERY_OFFSETS
        if boundary and boundary not in by_hand:
            probe = PartitionStore(MemoryStore.load(_after(store)), IDENTITY)
            by_hand[boundary], link[boundary] = probe.digest, log.hex()
        store.fold(Record(TOPIC, 0, offset, 1_000, True, None, value))
        log = sha256(log + offset.to_bytes(8, "big") + value).digest()
    assert sorted(by_hand) == [DIGEST_EVERY_OFFSETS, DIGEST_EVERY_OFFSETS * 4]
    assert store.recorded_digests == by_hand
    assert store.log_digest == log.hex()
    store.commit()
    recorded = dict(store.all_recorded_digests())
    assert {offset: digests.log.hex() for offset, digests in recorded.items()} == link
    assert PartitionStore(store.store, IDENTITY).recorded_digests == by_hand


def _after(store: PartitionStore) -> dict[str, dict[bytes, bytes]]:
    """What would be stored if ``store`` committed now, without making it do so."""
    assert isinstance(store.store, MemoryStore)
    twin = PartitionStore(MemoryStore(("fold", "bodies", "meta")), IDENTITY)
    for offset in (0, DIGEST_EVERY_OFFSETS - 1, DIGEST_EVERY_OFFSETS + 5):
        if offset < store.next_offset:
            value = b'{"type":"Enqueued","job":"j%d","job_type":"t"}' % offset
            twin.fold(Record(TOPIC, 0, offset, 1_000, True, None, value))
    twin.commit()
    assert isinstance(twin.store, MemoryStore)
    return twin.store.dump()


def test_a_record_whose_rules_are_unknown_leaves_the_store_as_it_was() -> None:
    writer = Writer()
    writer.enqueue("a")
    writer.end_record()
    store = in_memory()
    fold_all(store, writer.records)
    stored = whole(store)
    lines = [
        encode_line(ev.Enqueued(job="b", job_type="t")),
        *map(encode_line, activations(NEXT)),
    ]
    with pytest.raises(UnknownRules):
        store.fold(Record(TOPIC, 0, 2, 1_700_000_000_001, True, None, bundle(lines)))
    with pytest.raises(RuntimeError, match="open the store anew"):
        store.commit()
    assert whole(store) == stored


def test_the_owners_rows_are_in_the_same_batch(tmp_path: Path, store_factory: StoreFactory) -> None:
    writer = Writer()
    writer.enqueue("a")
    writer.end_record()

    view = FoldedLines()
    view.error = OSError("no more")
    with PartitionStore.open(
        tmp_path, identity=IDENTITY, extra=("timers",), store_factory=store_factory
    ) as store:
        store.attach("timers", view)
        for record in writer.records:
            store.fold(record)
        with pytest.raises(OSError, match="no more"):
            store.commit()
        assert store.store.get("timers", b"t") is None
        assert view.stored == 0
    view = FoldedLines()
    with PartitionStore.open(
        tmp_path, identity=IDENTITY, extra=("timers",), store_factory=store_factory
    ) as store:
        assert store.next_offset == 0
        store.attach("timers", view)
        for record in writer.records:
            store.fold(record)
        store.commit()
        assert view.stored == 2
    with PartitionStore.open(
        tmp_path, identity=IDENTITY, extra=("timers",), store_factory=store_factory
    ) as store:
        assert (store.next_offset, store.store.get("timers", b"t")) == (2, b"2")
        assert store.recompute_digest() == store.digest


class FoldedLines:
    """A view that counts lines."""

    def __init__(self) -> None:
        self.lines = 0
        self.stored = 0
        self.error: OSError | None = None

    def take(self, folded: Sequence[Folded]) -> None:
        self.lines += len(folded)

    def write(self, batch: Batch) -> None:
        batch.put("timers", b"t", str(self.lines).encode())
        if self.error is not None:
            raise self.error

    def written(self) -> None:
        self.stored = self.lines

    @property
    def awaited(self) -> bool:
        return False


def test_a_killed_process_leaves_every_commit(tmp_path: Path) -> None:
    writer = Writer()
    for number in range(200):
        writer.enqueue(f"j{number}", payload=Raw(b'"' + b"x" * 2_000 + b'"'))
        writer.end_record()
    writer = Writer()
    for number in range(200):
        writer.enqueue(f"j{number}", payload=Raw(b'"' + b"x" * 2_000 + b'"'))
        writer.end_record()
    with PartitionStore.open(tmp_path / "live", identity=IDENTITY) as store:
        fold_all(store, writer.records)
        # What it wrote is with the kernel, as when the process is killed: nothing was flushed, closed or synced.
        shutil.copytree(tmp_path / "live", tmp_path / "left")
        digest = store.digest
    with PartitionStore.open(tmp_path / "left", identity=IDENTITY) as store:
        assert store.next_offset == writer.records[-1].offset + 1
        assert store.recompute_digest() == store.digest == digest


def test_a_damaged_store_is_folded_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer()
    for number in range(50):
        writer.enqueue(f"j{number}")
        writer.end_record()
    with PartitionStore.open(tmp_path, identity=IDENTITY) as store:
        fold_all(store, writer.records)
        store.store.flush()
        digest = store.digest
    [folder] = tmp_path.iterdir()
    for manifest in folder.glob("MANIFEST-*"):
        data = bytearray(manifest.read_bytes())
        data[len(data) // 2] ^= 0xFF
        manifest.write_bytes(data)
    with PartitionStore.open(tmp_path, identity=IDENTITY) as store:
        assert store.next_offset == 0
        assert "damaged" in caplog.text
        fold_all(store, writer.records)
        assert store.digest == digest


@pytest.mark.parametrize(
    "other",
    [
        StoreIdentity("another", TOPIC, 0, 1),
        StoreIdentity("memory", "other.jobs", 0, 1),
        StoreIdentity("memory", TOPIC, 0, 2),
        StoreIdentity("memory", TOPIC, 0, 1, generation=1),
    ],
)
def test_a_store_of_another_log_is_not_taken(
    tmp_path: Path, store_factory: StoreFactory, other: StoreIdentity
) -> None:
    PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory).close()
    with pytest.raises(HistoryChanged, match="folded from another log"):
        PartitionStore.open(tmp_path, identity=other, store_factory=store_factory)
    PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory).close()


def test_a_store_of_another_version_is_folded_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    writer.enqueue("a")
    writer.end_record()
    with PartitionStore.open(tmp_path, identity=IDENTITY, extra=("old",)) as store:
        fold_all(store, writer.records)
    with PartitionStore.open(tmp_path, identity=IDENTITY, extra=("new",), layout=2) as store:
        assert store.next_offset == 0
        fold_all(store, writer.records)
    monkeypatch.setattr("penstock.state.versions.FOLD_VERSION", rows.FOLD_VERSION + 1)
    with PartitionStore.open(tmp_path, identity=IDENTITY, extra=("new",), layout=2) as store:
        assert store.next_offset == 0
        assert len(list(tmp_path.iterdir())) == 3
        assert store.remove_superseded()
        assert [path.name for path in tmp_path.iterdir()] == [f"fold-{rows.FOLD_VERSION + 1}-2"]


async def folded_log(records: int = 3) -> tuple[MemoryLog, PartitionStore]:
    log = MemoryLog()
    await log.ensure_topics([TopicSpec(TOPIC, 1)])
    store = in_memory()
    for number in range(records):
        await log.append(TOPIC, 0, b'{"type":"Enqueued","job":"j%d","job_type":"t"}' % number)
    for record in log.topics.read(TOPIC, 0, 0):
        store.fold(record)
    store.commit()
    return log, store


async def test_the_last_record_is_checked_against_the_log() -> None:
    log, store = await folded_log()
    await store.verify_last_record(log)
    await in_memory().verify_last_record(log)
    log.topics.truncate(TOPIC, 0, 3)
    await store.verify_last_record(log)


async def test_a_topic_made_anew_is_noticed() -> None:
    log, store = await folded_log()
    log.topics.forget(TOPIC)
    with pytest.raises(OffsetBeyondEnd):
        await store.verify_last_record(log)
    for number in range(5):
        await log.append(TOPIC, 0, b'{"type":"Enqueued","job":"other%d","job_type":"t"}' % number)
    with pytest.raises(HistoryChanged, match="made anew"):
        await store.verify_last_record(log)
    with pytest.raises(HistoryChanged, match="memory was folded"):
        await store.verify_last_record(MemoryLog(cluster_id="another"))


async def test_trimmed_history_is_noticed() -> None:
    log, store = await folded_log()
    await log.append(TOPIC, 0, b"{}")
    log.topics.truncate(TOPIC, 0, 4)
    with pytest.raises(OffsetTrimmed):
        await store.verify_last_record(log)


def test_lines_to_forward_are_found_again() -> None:
    store = PartitionStore(MemoryStore(("fold", "bodies", "meta")), StoreIdentity("memory", TOPIC, 0, 64))
    line = b'{"type":"Enqueued","job":"j1","job_type":"t"}'
    fold = PartitionFold(0, 64, lambda _: None)
    [folded] = fold.fold(0, 1, True, line)
    assert folded.outcome == "misrouted"
    store.fold(Record(TOPIC, 0, 0, 1, True, None, line))
    store.commit()
    assert list(store.committed_misrouted()) == [(0, line)]


@pytest.mark.parametrize("others", [0, 50], ids=["side by side", "far apart"])
def test_jobs_read_together_are_as_each_alone(
    tmp_path: Path, store_factory: StoreFactory, others: int
) -> None:
    """Whether they are stored, changed since, only just put in, gone, or never were."""
    writer = Writer()
    names = [f"j{number:02}" for number in range(20)]
    for name in names:
        for number in range(others):
            writer.enqueue(f"{name}.{number:02}")
        writer.enqueue(name)
    writer.end_record()
    with PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory) as store:
        fold_all(store, writer.records)
    writer.run("j03", result=b"1")
    writer.enqueue("j99")
    writer.end_record()
    keys = [f"default/{name}" for name in (*names, "j50", "j99")]
    with PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory) as alone:
        for record in writer.records:
            alone.fold(record)
        wanted = [alone.job(key) for key in keys]
    with PartitionStore.open(tmp_path, identity=IDENTITY, store_factory=store_factory) as together:
        for record in writer.records:
            together.fold(record)
        # Digests are taken in the middle of a commit now and then: what was changed is then in nobody's hands.
        together._take_changes()
        together._fold._rows._recent.clear()
        together.prepare(keys)
        assert set(keys) <= set(together._fold._rows.jobs)
        assert [together.job(key) for key in keys] == wanted
    assert [job is None for job in wanted] == [key == "default/j50" for key in keys]
