"""The OpenAPI document, held against the service by schemathesis: thousands of requests made of it, right or wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.api.app import OPERATIONS
from tests.acceptance.processes import ROOT, Stack
from tests.acceptance.test_dev import add_dev

CONFIGURATION = Path(__file__).resolve().parent / "schemathesis.toml"


@pytest.mark.slow
@pytest.mark.timeout(1_500)
def test_every_answer_is_one_that_the_document_has(tmp_path: Path) -> None:
    """No 5xx, no status or body that isn't documented, nothing taken that the document forbids; and calls that follow
    from each other's answers. Left out: the stream of events, which does not end."""
    with Stack(tmp_path) as stack:
        dev, server = add_dev(stack)
        dev.start().wait_ready()
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run",
                f"{server}/openapi.json", "--exclude-path-regex", "/events$", "--max-examples", "8",
                "--exclude-checks", "positive_data_acceptance", "--no-color",
            ],
            cwd=ROOT, env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.acceptance.schema_hooks"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout[-2_000:]
    assert int(generated[1]) > 1_000
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None, done.stdout[-2_000:]
    assert int(tested[1]) == len(OPERATIONS) - 1
