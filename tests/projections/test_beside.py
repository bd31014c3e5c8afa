"""A read model rebuilt beside the one that is served: compared, swapped in, or left to wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.log.memory import MemoryLog
from penstock.log.namespace import open_namespace
from penstock.projections import beside
from penstock.projections.beside import Rebuild, Replaced, look_at
from penstock.projections.rows import FAMILIES, LAYOUT
from penstock.projections.service import ProjectionService, projection_path, projection_store
from penstock.schemas import events as ev
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import DigestMismatch, HistoryChanged, LogCorrupt, StoreLocked
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from penstock.state.partition_store import PartitionStore, StoreIdentity
from penstock.state.snapshots_restoring import StateKind
from penstock.state.versions import fold_folder
from tests.waiting import until

KIND = StateKind("projection", FAMILIES, LAYOUT)


class Scene:
    """A log of two partitions and the folder of its projection."""

    def __init__(self, log: MemoryLog, topics: Topics, folder: Path) -> None:
        self.log, self.topics, self.folder = log, topics, folder
        self._jobs = 0

    def service(self) -> ProjectionService:
        return ProjectionService(self.log, self.topics, self.folder)

    async def enqueue(self, jobs: int) -> None:
        for _ in range(jobs):
            job_id = f"j{self._jobs}"
            self._jobs += 1
            line = encode_line(ev.Enqueued(id=f"enq.{job_id}", job=job_id, job_type="resize"))
            await self.log.append(self.topics.jobs, partition_of(job_id, self.topics.partitions), line)

    async def caught_up(self, service: ProjectionService) -> None:
        ends = [(await self.log.bounds(self.topics.jobs, number)).end for number in range(2)]
        await until(lambda: list(service.offsets.values()) == ends, service)

    async def rebuild(self, *, force: bool = False) -> list[Replaced]:
        rebuild = Rebuild(
            self.log, self.topics, self.folder, KIND, projection_path, projection_store, force=force
        )
        return await rebuild.run()

    def identity(self, partition: int = 0) -> StoreIdentity:
        return StoreIdentity(self.log.cluster_id, self.topics.jobs, partition, 2)

    def place(self, partition: int = 0) -> Path:
        return fold_folder(projection_path(self.folder, partition), LAYOUT)

    def store(self, partition: int = 0) -> PartitionStore:
        return projection_store(self.folder, self.identity(partition))

    def tamper(self) -> None:
        """Fold something that the log does not say."""
        with self.store() as store:
            store._progress.state_digest = b"\x01" * 32
            batch = store.store.batch()
            batch.put("fold", b"jdefault/nobody", b"damage")
            batch.put("meta", b"progress", beside_progress(store))
            store.store.write(batch)


def beside_progress(store: PartitionStore) -> bytes:
    import msgspec

    return msgspec.msgpack.encode(store._progress)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    topics = Topics(namespace="test", partitions=2, work_partitions=2)
    async with MemoryLog() as log:
        await open_namespace(log, topics)
        made = Scene(log, topics, tmp_path / "projection")
        await made.enqueue(60)
        yield made


async def test_a_stopped_projection_gets_it_at_once(scene: Scene) -> None:
    async with scene.service() as service:
        await scene.caught_up(service)
        digests = [part.digest for part in await service.status()]
    (scene.place() / "mark").touch()
    await scene.enqueue(10)
    replaced = await scene.rebuild()
    assert [(one.swapped, one.compared) for one in replaced] == [("now", 1), ("now", 1)]
    assert not (scene.place() / "mark").exists()
    assert sorted(path.name for path in scene.folder.iterdir()) == ["partition-0", "partition-1"]
    assert [path.name for path in scene.place().parent.iterdir()] == [scene.place().name]
    async with scene.service() as service:
        assert [part.digest for part in await service.status()] == [one.rebuilt.digest for one in replaced]
        assert digests != [one.rebuilt.digest for one in replaced]
        await scene.caught_up(service)


async def test_a_running_projection_gets_it_when_it_starts_again(scene: Scene) -> None:
    async with scene.service() as service:
        await scene.caught_up(service)
        (scene.place() / "mark").touch()
        replaced = await scene.rebuild()
        assert [(one.swapped, one.compared) for one in replaced] == [("at_next_start", 1)] * 2
        await scene.enqueue(10)
        await scene.caught_up(service)
        digests = [part.digest for part in await service.status()]
    assert (scene.place() / "mark").exists()
    async with scene.service() as service:
        assert not (scene.place() / "mark").exists()
        assert sum(service.offsets.values()) == 60
        await scene.caught_up(service)
        assert [part.digest for part in await service.status()] == digests


async def test_what_is_not_what_the_log_says_is_not_replaced_in_silence(scene: Scene) -> None:
    async with scene.service() as service:
        await scene.caught_up(service)
    scene.tamper()
    with pytest.raises(DigestMismatch, match=r"the log gives \w{64}, served is 0101") as caught:
        await scene.rebuild()
    assert caught.value.exit_code == 7
    with scene.store() as store:
        assert store.digest == "01" * 32
    replaced = await scene.rebuild(force=True)
    assert [one.swapped for one in replaced] == ["now", "now"]
    with scene.store() as store:
        assert store.digest == store.recompute_digest() == replaced[0].rebuilt.digest


async def test_where_nothing_is_served_nothing_is_compared(scene: Scene) -> None:
    replaced = await scene.rebuild()
    assert [(one.swapped, one.compared) for one in replaced] == [("now", 0)] * 2
    async with scene.service() as service:
        assert sum(service.offsets.values()) == 60


async def test_a_damaged_folder_is_replaced(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "LOOK_AGAIN_S", 0.001)
    async with scene.service() as service:
        await scene.caught_up(service)
    (scene.place() / "CURRENT").write_text("nothing")
    replaced = await scene.rebuild()
    assert [(one.swapped, one.compared) for one in replaced] == [("now", 0), ("now", 1)]
    with scene.store() as store:
        assert store.recompute_digest() == replaced[0].rebuilt.digest


async def test_a_folder_in_use_that_cannot_be_read_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "LOOK_AGAIN_S", 0.001)
    tries = 0

    def gone(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise LogCorrupt("a file is gone")

    with scene.store() as store:
        store.store.flush()
        whole = look_at(scene.place(), scene.identity(), FAMILIES)
        assert whole is not None
        assert (whole.next_offset, whole.digest) == (0, store.digest)
        monkeypatch.setattr(beside, "_look", gone)
        with pytest.raises(LogCorrupt):
            look_at(scene.place(), scene.identity(), FAMILIES)
    assert tries == beside.LOOKS
    assert look_at(scene.place(), scene.identity(), FAMILIES) is None


async def test_a_folder_of_another_log_is_not_replaced(scene: Scene) -> None:
    other = StoreIdentity("another", scene.topics.jobs, 0, 2)
    projection_store(scene.folder, other).close()
    with pytest.raises(HistoryChanged):
        await scene.rebuild()


async def test_two_rebuilds_do_not_meet(scene: Scene) -> None:
    from penstock.log.store_lock import hold_folder, opened

    work = scene.folder / "rebuilding"
    work.mkdir(parents=True)
    opened(work)  # as another rebuild in this process would have it
    with pytest.raises(StoreLocked):
        await scene.rebuild()
    from penstock.log.store_lock import closed

    closed(work)
    (work / "partition-0").mkdir()
    (work / "partition-0" / "left by one that died").touch()
    assert [one.swapped for one in await scene.rebuild()] == ["now", "now"]
    with pytest.raises(FileNotFoundError), hold_folder(work):
        pass
