"""docs/worker-protocol.md, run as it stands: every block of bash, in order, against `penstock dev`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT, Stack
from tests.waiting import free_port

DOC = ROOT / "docs" / "worker-protocol.md"


def script() -> str:
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOC.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    return "set -euo pipefail\n" + "\n".join(blocks)


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
