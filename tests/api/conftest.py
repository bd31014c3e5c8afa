from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.harness import Bench, bench


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Bench]:
    """The API without anybody who hands out jobs."""
    async with bench(tmp_path) as found:
        yield found


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Bench]:
    """The API with an orchestrator."""
    async with bench(tmp_path, orchestrate=True) as found:
        yield found
