"""docs/worker-protocol.md, run as it stands: every block of bash, in order, against `penstock dev`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from penstock.api.gateway_models import FetchRequest
from penstock.api.gateway_routes import LEAST_WAIT_MS, MOST_WAIT_MS
from tests.acceptance.processes import ROOT, Stack
from tests.waiting import free_port

DOC = ROOT / "docs" / "worker-protocol.md"


def script() -> str:
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOC.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    return "set -euo pipefail\n" + "\n".join(blocks)


def test_how_long_a_fetch_waits_is_told_as_it_is() -> None:
    [row] = re.findall(r"^\| `wait_ms` \|.*$", DOC.read_text("utf-8"), re.MULTILINE)
    told = [int(number) for number in re.findall(r"\d+", row) if number != "422"]
    fetch = {"worker": "w", "types": ["t"]}
    assert told == [msgspec.convert(fetch, FetchRequest).wait_ms, 3_600_000, LEAST_WAIT_MS, MOST_WAIT_MS]
    msgspec.convert({**fetch, "wait_ms": told[1]}, FetchRequest)
    with pytest.raises(msgspec.ValidationError, match="wait_ms"):
        msgspec.convert({**fetch, "wait_ms": told[1] + 1}, FetchRequest)


@pytest.mark.skipif(
    os.environ.get("CI", "").lower() not in {"1", "true"}
    and not all(map(shutil.which, ("bash", "curl", "jq"))),
    reason="needs bash, curl and jq; with CI=true it fails without them",
)
def test_the_walk_through_works_as_written(tmp_path: Path) -> None:
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    with Stack(tmp_path) as stack:
        role = stack.add("dev", ("dev", "--data", "data", "--port", str(port)), {}, f"{server}/readyz")
        role.start().wait_ready()
        done = subprocess.run(
            ["bash", "-x"],
            input=script(),
            cwd=tmp_path,
            env={**os.environ, "PENSTOCK_SERVER": server, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}\n{role.tail()}"
