"""``penstock rules``, and what becomes of a program that is too old for its log."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core.rules import RULES, newest
from penstock.log.namespace import open_namespace
from penstock.log.opening import open_log
from penstock.schemas import events as ev
from penstock.schemas.codec import bundle, encode_line
from penstock.schemas.topics import Topics
from tests.cli.conftest import Run, environment
from tests.core.newer_rules import NEXT, activations

KNOWN = newest(RULES)


def test_status_through_the_server(ask: Run) -> None:
    found = ask("rules", "status", "--output", "json").json
    assert (found["wanted"], found["partitions"]) == (KNOWN, dict.fromkeys("0123", KNOWN))
    assert [(one["kind"], one["rules"]) for one in found["processes"]] == [("orchestrator", KNOWN)]
    assert "0, 1, 2, 3" in ask("rules", "status").out


def test_rules_that_are_in_force_need_no_activation(ask: Run) -> None:
    assert ask("rules", "activate", str(KNOWN)).code == 0


@pytest.mark.parametrize("version", [str(KNOWN + 1), "1000"])
def test_rules_that_this_version_lacks_are_not_activated(ask: Run, version: str) -> None:
    refused = ask("rules", "activate", version)
    assert (refused.code, f"knows no rules above {KNOWN}" in refused.err) == (5, True)


@pytest.mark.parametrize("version", ["0", "1001", "new"])
def test_no_version(ask: Run, version: str) -> None:
    assert ask("rules", "activate", version).code == 2


def test_nobody_is_there_to_activate_anything(run: Run, tmp_path: Path) -> None:
    _write(tmp_path, [])
    nobody = run("rules", "activate", "1", "--data", tmp_path)
    assert (nobody.code, "no orchestrator" in nobody.err) == (5, True)
    shown = run("rules", "status", "--data", tmp_path)
    assert (shown.code, "nobody is alive" in shown.out) == (0, True)


def test_a_program_that_is_too_old_says_so_and_ends(run: Run, tmp_path: Path) -> None:
    leader = ev.LeaderAnnounced(id="a", orchestrator="newer", incarnation="i", supersedes=-1)
    _write(tmp_path, [leader, *activations(NEXT)])
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.main", "dev", "--data", tmp_path, "--port", "0"],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (8, False)
    assert f"rules {NEXT}" in done.stderr
    assert "upgrade Penstock here" in done.stderr
    assert run("verify", "--data", tmp_path).code == 8


def _write(folder: Path, events: list[ev.Event]) -> None:
    topics = Topics(partitions=4, work_partitions=4)

    async def write() -> None:
        async with open_log(f"embedded:{folder}") as log:
            await open_namespace(log, topics)
            if events:
                await log.append(topics.jobs, 1, bundle([encode_line(event) for event in events]))

    asyncio.run(write())
