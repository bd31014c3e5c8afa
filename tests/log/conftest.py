"""One log of each kind, under the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.log.opening import open_log
from penstock.log.port import Log


@pytest.fixture(params=["memory", "embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    """An opened log without topics."""
    spec = {"memory": "memory:", "embedded": f"embedded:{tmp_path / 'log'}"}.get(request.param)
    if spec is None:
        spec = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    async with open_log(spec) as opened:
        yield opened
