"""What a worker process loads: no other role, and no HTTP client while nothing asks for one."""

from __future__ import annotations

import subprocess
import sys

STARTS = """
import sys
import penstock.cli.main, penstock.cli.role_running, penstock.cli.worker_role
from penstock import task

@task
async def noop() -> None: ...

noop.arguments
print(*sys.modules)
"""

OTHERS = (
    "fastapi", "httpx", "rich", "rocksdict", "obstore", "uvicorn", "penstock.api", "penstock.orchestrator",
    "penstock.projections.service",
)  # fmt: skip


def test_a_worker_loads_no_other_role() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", STARTS], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(answer.stdout.split())
    assert "penstock.workers.runtime" in loaded
    assert not loaded & set(OTHERS)
