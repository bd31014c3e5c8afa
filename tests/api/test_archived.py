"""Jobs that were forgotten: what is still told of them, by the read model and then by the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.log.archive import Archive
from penstock.log.archive_log import ArchivedLog
from penstock.log.archiver import Archiver
from penstock.log.blobs import open_blobs
from penstock.projections.retention import remove_histories
from penstock.schemas import events as ev
from penstock.schemas.ids import partition_of
from tests.api.harness import Bench
from tests.state.writing import Writer
from tests.waiting import until

FAR_FUTURE_MS = 4_000_000_000_000


async def written(api: Bench, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Each job lives, fails once, succeeds, hears a late line and is forgotten; hours of log time in a moment."""
    for partition in range(api.topics.partitions):
        writer = Writer(partition=partition, partitions=api.topics.partitions, topic=api.topics.jobs)
        for name in names:
            if partition_of(name, api.topics.partitions) == partition:
                writer.enqueue(name)
                writer.fail(name)
                writer.run(name, b'{"sum":3}')
                writer.write(b"garbage")
                writer.end_record()
                for number in range(25):
                    writer.write(ev.Succeeded(id=f"late.{number}", job=name, lease="of-a-zombie"))
                writer.forget(name)
        writer.write(ev.Succeeded(id="s", job="stranger", lease="none"))
        for record in writer.play([]):
            monkeypatch.setattr(api.log.topics, "_now_ms", lambda record=record: record.time_ms)
            await api.log.append(api.topics.jobs, partition, record.value)
    ends = {
        number: (await api.log.bounds(api.topics.jobs, number)).end for number in range(api.topics.partitions)
    }
    await until(lambda: api.deps.read_model.offsets == ends)


def forget_histories(api: Bench) -> None:
    for part in api.deps.read_model._parts.values():
        remove_histories(part.store.store, FAR_FUTURE_MS)


async def archived(api: Bench, folder: Path) -> Archive:
    archive = Archive(open_blobs(str(folder)), api.topics.jobs, cluster_id=api.log.cluster_id)
    log = ArchivedLog(api.log, archive)
    await Archiver(log, api.namespace, segment_bytes=3_000).round(everything=True)
    return archive


async def pages(api: Bench, job_id: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        params = {"limit": str(limit), "cursor": cursor}
        answer = await api.http.get(f"/api/v1/jobs/{job_id}/history", params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        assert len(page["items"]) <= limit
        cursor = page["next_cursor"]
        if not cursor:
            return found


async def test_a_forgotten_job_is_told_from_one_that_never_was(
    api: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(api, monkeypatch, "old")
    gone = await api.http.get("/api/v1/jobs/old")
    assert (gone.status_code, gone.json()["code"]) == (404, "job_forgotten")
    never = await api.http.get("/api/v1/jobs/never")
    assert (never.status_code, never.json()["code"]) == (404, "job_not_found")
    history = await api.http.get("/api/v1/jobs/old/history")
    assert history.status_code == 200
    assert history.json()["items"][-1]["type"] == "Forgotten"


async def test_its_history_comes_from_the_archive_just_as_it_came_from_the_read_model(
    api: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"job-{number}" for number in range(12)]
    await written(api, monkeypatch, *names)
    before = {name: (await api.http.get(f"/api/v1/jobs/{name}/history")).content for name in names}
    forget_histories(api)
    for name in names:
        lost = await api.http.get(f"/api/v1/jobs/{name}/history")
        assert (lost.status_code, lost.json()["code"]) == (404, "job_not_found")
    api.deps.archive = await archived(api, tmp_path / "archive")
    for name in names:
        found = await api.http.get(f"/api/v1/jobs/{name}/history")
        assert found.status_code == 200
        assert found.content == before[name]
        assert found.json()["refused"] == 25
    whole = await pages(api, "job-3", 1_000)
    assert await pages(api, "job-3", 3) == whole
    for name in ("never", "stranger"):
        never = await api.http.get(f"/api/v1/jobs/{name}/history")
        assert (never.status_code, never.json()["code"]) == (404, "job_not_found")
    bad = await api.http.get("/api/v1/jobs/job-3/history", params={"cursor": "nonsense"})
    assert bad.status_code == 422


async def test_exports_go_on_over_what_was_trimmed(
    api: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await written(api, monkeypatch, *(f"job-{number}" for number in range(12)))
    before = (await api.http.get("/api/v1/audit/export")).content
    archive = await archived(api, tmp_path / "archive")
    for partition in range(api.topics.partitions):
        end = (await api.log.bounds(api.topics.jobs, partition)).end
        await api.log.truncate(api.topics.jobs, partition, end - 1)
    assert (await api.http.get("/api/v1/audit/export")).content != before
    api.deps.log = ArchivedLog(api.log, archive)
    assert (await api.http.get("/api/v1/audit/export")).content == before
