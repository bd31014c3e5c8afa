"""A log with an archive beside it is still a log: the port's promises hold for it as for any other."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.log.archive import Archive
from penstock.log.archive_log import ArchivedLog
from penstock.log.blobs import open_blobs
from penstock.log.memory import MemoryLog
from penstock.log.port import TopicSpec
from tests.log.test_conformance import *  # noqa: F403  # all of its tests, on the fixtures below


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[ArchivedLog]:
    async with ArchivedLog(MemoryLog(), Archive(open_blobs(str(tmp_path / "archive")), "")) as opened:
        yield opened


@pytest.fixture
async def topic(log: ArchivedLog) -> str:
    name = f"t{uuid.uuid4().hex[:10]}.jobs"
    log.archive.topic = name
    await log.ensure_topics([TopicSpec(name, 4)])
    return name
