"""Concurrency keys on real Kafka, while every role is killed: no two jobs of a key are ever leased at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Stack
from tests.acceptance.test_many import applied_lines, ask, kill_in_turn, proven, started
from tests.waiting import wait_for

KEYS = 6
JOBS = 20
"""Of each key."""

ENDS = frozenset({"Succeeded", "Failed", "Returned", "LeaseExpired", "Cancelled"})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_of_one_key_run_one_at_a_time_while_everybody_is_killed(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace)
        started(stack)
        jobs = [
            {
                "id": f"j{number}~key-{key}",
                "type": "nap",
                "payload": {"seconds": 0.05},
                "concurrency_key": f"key-{key}",
            }
            for number in range(JOBS)
            for key in range(KEYS)
        ]
        assert ask("POST", f"{server}/api/v1/jobs/bulk", jobs).json["accepted"] == len(jobs)
        kill_in_turn(stack)

        def succeeded() -> bool:
            states = ask("GET", f"{server}/api/v1/counts").json["states"]
            return states.get("succeeded") == len(jobs)

        wait_for("all have succeeded", succeeded, 120)
        for key in range(KEYS):
            assert (
                _leased_at_once(server, [job["id"] for job in jobs if job["id"].endswith(f"~key-{key}")]) == 1
            )
        proven(stack)


def _leased_at_once(server: str, jobs: list[Any]) -> int:
    """How many of them were leased at one time, at most: told from their lines, in the order of the log."""
    lines = applied_lines(server, jobs)
    leased = most = 0
    for kind in (item["type"] for _, _, item in sorted(lines, key=lambda line: line[0])):
        leased += (kind == "Leased") - (kind in ENDS)
        most = max(most, leased)
    assert leased == 0
    return most
