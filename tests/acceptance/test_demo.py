"""`make demo` keeps its promises: it checks them itself, and exits with 1 when one is broken."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT

DEMO = ROOT / "examples" / "demo" / "run.py"


@pytest.mark.slow
def test_the_demonstration_keeps_its_promises(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert "resumed at row 8,000 of 20,000" in done.stdout
    assert re.search(r"All \d+ promises kept", done.stdout)
    assert "\x1b[" not in done.stdout
    assert _left_behind(tmp_path) == []


def test_it_needs_nothing_but_the_package_and_its_demo_extra() -> None:
    for name in ("run.py", "processes.py", "material.py", "tasks.py"):
        text = (DEMO.parent / name).read_text(encoding="utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
        own = {"material", "processes", "tasks"}
        assert imported - set(sys.stdlib_module_names) - own <= {"penstock", "PIL", "pydantic"}


def _left_behind(folder: Path) -> list[str]:
    """Processes that still speak of this folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            arguments = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in arguments:
                found.append(arguments)
    return found
