"""Hundreds of people change their minds about running jobs, on real Kafka, while everybody is killed in turn.

What must hold: of two that race one wins and both are told the truth; a job ends once; nothing hangs; and whoever folds
the log anew comes to the same jobs.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.processes import Stack, http, penstock_json
from tests.acceptance.test_kill_roles import leads
from tests.waiting import wait_for

JOBS = 80
CALLERS = 8
WISHES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("cancel", {}, "CancelRequested"),
    ("retry", {}, "RetryRequested"),
    ("hold", {}, "Held"),
    ("unhold", {}, "Unheld"),
    ("priority", {"priority": "high"}, "Edited"),
    ("reschedule", {"delay_ms": 100}, "Edited"),
)
ENDED = {"succeeded", "cancelled", "dead", "deleted"}


class Crowd:
    """Asks for changes of jobs at random, and keeps what it was told."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.told: dict[str, Counter[str]] = {}
        self.statuses: Counter[int] = Counter()

    def change(self, number: int) -> None:
        """One job's share: half a dozen wishes, one after the other, each repeated until it is answered."""
        dice = random.Random(number)
        job = f"race-{number}"
        done = self.told[job] = Counter()
        for step, (verb, body, kind) in enumerate(dice.choices(WISHES, k=6)):
            if self._ask(f"{job}/{verb}", body, f"{number}-{step}"):
                done[kind] += 1

    def _ask(self, path: str, body: dict[str, Any], key: str) -> bool:
        def answered() -> int | None:
            try:
                answer = http(
                    "POST", f"{self.server}/api/v1/jobs/{path}", body, headers={"Idempotency-Key": key}
                )
            except OSError:
                return None
            return None if answer.status == 503 else answer.status

        status = wait_for(f"{path} is answered", answered, 60)
        self.statuses[status] += 1
        return status == 200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_racing_changes_while_everybody_is_killed(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    with Stack(tmp_path) as stack:
        server = stack.add_kafka_roles(kafka_bootstrap, unique_namespace)
        stack.start()
        led = ("orchestrator-0", "orchestrator-1")
        wait_for("every partition is led", lambda: sum(leads(stack, name) for name in led) == 4)
        for number in range(JOBS):
            fields = {"id": f"race-{number}", "type": "nap", "payload": {"seconds": 0.2}}
            assert http("POST", f"{server}/api/v1/jobs", fields).status == 201
        crowd = Crowd(server)
        with ThreadPoolExecutor(CALLERS) as callers:
            asking = [callers.submit(crowd.change, number) for number in range(JOBS)]
            for victim in ("orchestrator-0", "worker", "projection", "api", "orchestrator-1"):
                stack[victim].kill()
                stack[victim].start().wait_ready()
            for one in asking:
                one.result()
        assert set(crowd.statuses) <= {200, 409}, crowd.statuses
        _let_go(server)
        wait_for("all have ended", lambda: _states(server).keys() <= ENDED, 90)
        for job, done in crowd.told.items():
            _check(server, job, done)
        for name in ("worker", "api", *led, "projection"):
            assert stack[name].stop() == 0
        settings = stack["projection"].environment
        verified = penstock_json("verify", folder=stack.folder, environment=settings)
        assert verified["ok"], verified


def _let_go(server: str) -> None:
    """Whoever was left held is let go."""
    page = http("GET", f"{server}/api/v1/jobs?state=held&limit=1000").json
    for job in page["items"]:
        assert http("POST", f"{server}/api/v1/jobs/{job['id']}/unhold").status == 200


def _states(server: str) -> dict[str, int]:
    states: dict[str, int] = http("GET", f"{server}/api/v1/counts").json["states"]
    return states


def _check(server: str, job: str, done: Counter[str]) -> None:
    """What its callers were told is what the log says, and it ended once for each time that it was begun."""
    items = http("GET", f"{server}/api/v1/jobs/{job}/history").json["items"]
    applied = Counter(item["type"] for item in items if item["outcome"] == "applied")
    extra = 1 if applied["Unheld"] == done["Unheld"] + 1 else 0
    kinds = {kind for _, _, kind in WISHES}
    told = Counter({kind: applied[kind] for kind in kinds if applied[kind]})
    told["Unheld"] -= extra
    assert +told == +done, job
    assert applied["Succeeded"] <= 1, job
