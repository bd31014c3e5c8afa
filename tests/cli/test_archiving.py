"""``penstock archive`` and ``penstock log trim`` on an embedded log that nobody runs on."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import composition
from penstock.cli.settings import duration_ms, load
from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import SettingsInvalid
from penstock.schemas.events import Succeeded
from penstock.schemas.ids import partition_of
from penstock.schemas.topics import Topics
from tests.cli.conftest import Run
from tests.state.writing import Writer

NAMES = [f"job-{number}" for number in range(20)]
PARTITIONS = 4


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a log of jobs, and an archive set beside it."""
    asyncio.run(_fill(tmp_path / "data"))
    monkeypatch.setenv("PENSTOCK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PENSTOCK_ARCHIVE", str(tmp_path / "archive"))
    return tmp_path / "data"


async def _fill(folder: Path) -> None:
    async with open_log(f"embedded:{folder}", fsync="none") as log:
        topics = (await open_namespace(log, Topics(partitions=PARTITIONS, work_partitions=4))).topics
        for partition in range(PARTITIONS):
            writer = Writer(partition=partition, partitions=PARTITIONS, topic=topics.jobs)
            for name in NAMES:
                if partition_of(name, PARTITIONS) == partition:
                    writer.enqueue(name)
                    writer.run(name)
                    writer.end_record()
            for record in writer.play([]):
                await log.append(topics.jobs, partition, record.value)


async def _succeed_again(folder: Path) -> None:
    """A zombie's line, after all was archived."""
    async with open_log(f"embedded:{folder}", fsync="none") as log:
        line = encode_line(Succeeded(id="z", job="job-7", lease="long-gone"))
        await log.append("penstock.jobs", partition_of("job-7", PARTITIONS), line)


def plans(text: str) -> list[dict[str, Any]]:
    return json.loads(text)["partitions"]


def test_from_an_archive_to_a_trimmed_log_that_answers_as_before(run: Run, data: Path) -> None:
    assert run("audit", "export", "-o", "before.ndjson", "--log", f"embedded:{data}").code == 0
    assert run("archive", "list").out.strip() == "nothing is archived"
    nothing = run("archive", "verify")
    assert (nothing.code, "Nothing of penstock.jobs is archived" in nothing.err) == (4, True)
    done = run("archive", "run", "--once", "--output", "json")
    assert done.code == 0, done.err
    assert done.json["records"] > 4 * len(NAMES) / 2
    assert run("archive", "run", "--once", "--output", "json").json["records"] == 0
    listed = run("archive", "list", "--output", "json").json
    assert [one["partition"] for one in listed] == list(range(PARTITIONS))
    assert sum(one["records"] for one in listed) == done.json["records"]
    verified = run("archive", "verify", "--output", "json").json
    assert [one["digest"] for one in verified] == [one["digest_after"] for one in listed]
    assert len(run("archive", "verify", "--partition", "2", "--output", "json").json) == 1

    wanted = plans(run("log", "trim", "--dry-run", "--output", "json").out)
    assert all(plan["offsets"] > 0 for plan in wanted)
    one = run("log", "trim", "--partition", "1", "--output", "json")
    assert plans(one.out) == wanted[1:2]
    rest = run("log", "trim", "--output", "json")
    assert rest.code == 0, rest.err
    assert [plan["offsets"] for plan in plans(rest.out)] == [
        plan["offsets"] if plan["partition"] != 1 else 0 for plan in wanted
    ]
    again = run("log", "trim")
    assert again.code == 5
    assert "partition 3: the archive ends with the record at offset" in again.err

    assert run("audit", "export", "-o", "after.ndjson", "--log", f"embedded:{data}").code == 0
    assert Path("after.ndjson").read_bytes() == Path("before.ndjson").read_bytes()
    assert run("verify", "--log", f"embedded:{data}").code == 0
    rebuilt = run("projection", "rebuild", "--into", "fresh", "--output", "json")
    assert rebuilt.code == 0, rebuilt.err
    tail = run("log", "tail", "-n", "1000", "--log", f"embedded:{data}", "--output", "json")
    positions = [json.loads(line)["position"] for line in tail.out.splitlines()]
    assert len(positions) == Path("before.ndjson").read_bytes().count(b"\n") - 2
    first = run("log", "inspect", "0:0:0", "--log", f"embedded:{data}", "--output", "json")
    assert first.json["type"] == "LeaderAnnounced"


def test_the_log_without_its_archive_says_what_is_missing(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("archive", "run", "--once")
    run("log", "trim")
    monkeypatch.delenv("PENSTOCK_ARCHIVE")
    refused = run("projection", "rebuild", "--into", "fresh")
    assert refused.code == 7
    assert "begins at offset" in refused.err
    assert run("verify", "--log", f"embedded:{data}").code == 7


def test_the_history_of_a_job_out_of_the_archive(run: Run, data: Path) -> None:
    run("archive", "run", "--once")
    shown = run("archive", "history", "job-7", "--output", "json")
    assert shown.code == 0, shown.err
    found = shown.json
    assert [(item["type"], item["outcome"]) for item in found] == [
        ("Enqueued", "applied"),
        ("Leased", "applied"),
        ("Succeeded", "applied"),
    ]
    asyncio.run(_succeed_again(data))
    newer = run("archive", "history", "job-7", "--data", data, "--output", "json").json
    assert [(item["type"], item["outcome"]) for item in newer] == [
        *[(item["type"], item["outcome"]) for item in found],
        ("Succeeded", "stale"),
    ]
    table = run("archive", "history", "job-7")
    assert "Succeeded" in table.out
    missing = run("archive", "history", "nobody")
    assert (missing.code, "nobody" in missing.err) == (4, True)


def test_damage_is_found_and_nothing_goes(run: Run, data: Path) -> None:
    run("archive", "run", "--once")
    victim = next((data.parent / "archive").rglob("*.records"))
    victim.write_bytes(victim.read_bytes()[:-1])
    refused = run("archive", "verify")
    assert refused.code == 7
    assert victim.name in refused.err
    assert run("log", "trim").code == 7
    assert run("verify", "--log", f"embedded:{data}").code == 0


def test_what_is_too_young_stays(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("archive", "run", "--once")
    monkeypatch.setenv("PENSTOCK_TRIM_AFTER", "1d")
    young = run("log", "trim")
    assert young.code == 5
    assert "too young" in young.err
    assert run("log", "trim", "--before", "2020-01-01T00:00:00Z").code == 5
    assert run("log", "trim", "--before", "yesterday").code == 2
    assert run("log", "trim", "--partition", "9").code == 2
    assert run("log", "trim", "--before", "2100-01-01T00:00:00Z").code == 0


@pytest.mark.parametrize("command", [("log", "trim"), ("archive", "list"), ("archive", "run", "--once")])
def test_without_an_archive_there_is_nothing_to_do(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.delenv("PENSTOCK_ARCHIVE")
    refused = run(*command)
    assert refused.code == 2
    assert "PENSTOCK_ARCHIVE" in refused.err


async def test_the_settings_reach_the_roles(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RETENTION_DEAD", "2d"), ("RETENTION_HISTORY", "1h"), ("TRIM_AFTER", "9d")):
        monkeypatch.setenv(f"PENSTOCK_{name}", value)
    settings = load(name="n")
    async with AsyncExitStack() as stack:
        opened = await composition.start_log(stack, settings)
        orchestrator, reads = await composition.start_node(stack, settings, opened, alone=True)
        keepers, numbers = await composition.start_archiving(stack, settings, opened)
        assert orchestrator.machine.forgetting.retention.ages_ms == {"dead": 172_800_000}
        assert reads.history_age_ms == 3_600_000
        assert [type(keeper).__name__ for keeper in keepers] == ["Archiver", "Trimmer"]
        assert numbers()["penstock_archive_failures"] == 0
        assert numbers()["penstock_trim_trimmed_offsets"] == 0


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "ms"),
        [
            ("7d", 604_800_000),
            ("36h", 129_600_000),
            ("20m", 1_200_000),
            ("2w", 1_209_600_000),
            ("never", None),
        ],
    )
    def test_durations(self, text: str, ms: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert duration_ms(text) == ms
        monkeypatch.setenv("PENSTOCK_RETENTION_DEAD", text)
        assert load().retention_dead == ms

    def test_by_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load().retention_ms == {}
        Path("penstock.toml").write_text('retention_succeeded = "1d"\nretention_dead = "never"')
        monkeypatch.setenv("PENSTOCK_RETENTION_EXPIRED", "2d")
        monkeypatch.setenv("PENSTOCK_RETENTION_CANCELLED", "")
        assert load().retention_ms == {"expired": 172_800_000, "succeeded": 86_400_000}

    @pytest.mark.parametrize("value", ["19m", "1s", "0d"])
    def test_nothing_is_forgotten_while_late_copies_may_come(
        self, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PENSTOCK_RETENTION_SUCCEEDED", value)
        with pytest.raises(SettingsInvalid, match="PENSTOCK_RETENTION_SUCCEEDED: must be 20m or more"):
            load()

    @pytest.mark.parametrize("value", ["7", "d", "7 days", "-1d", "1.5h", "٧d"])
    def test_what_is_no_duration(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_RETENTION_HISTORY", value)
        with pytest.raises(SettingsInvalid, match="must be a duration like 90s"):
            load()

    def test_a_bare_number_in_the_file_is_no_duration(self) -> None:
        Path("penstock.toml").write_text("archive_after = 7")
        with pytest.raises(SettingsInvalid, match=r"archive_after in penstock\.toml: must be a duration"):
            load()

    def test_the_archive_cannot_be_told_never(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_ARCHIVE_AFTER", "never")
        with pytest.raises(SettingsInvalid, match="PENSTOCK_ARCHIVE_AFTER"):
            load()

    def test_nothing_is_trimmed_that_is_not_archived(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_TRIM_AFTER", "30d")
        with pytest.raises(SettingsInvalid, match="PENSTOCK_ARCHIVE"):
            load()
        monkeypatch.setenv("PENSTOCK_ARCHIVE", "s3://bucket/log")
        assert load().trim_after == 30 * 86_400_000
