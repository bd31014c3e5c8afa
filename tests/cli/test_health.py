"""Health and metrics of a role that runs alone."""

from __future__ import annotations

import httpx

from penstock.cli.health import STALLED_MS, ProgressCheck, health_app


async def test_alive_ready_and_counted():
    problems: list[str] = []
    numbers = {"penstock_a": 1.5, 'penstock_b{partition="3"}': 2, 'penstock_b{partition="4"}': 0}
    app = health_app("orchestrator", lambda: problems, lambda: numbers)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://role.test") as client:
        alive = await client.get("/healthz")
        assert (alive.status_code, alive.json()["status"], alive.json()["role"]) == (
            200,
            "ok",
            "orchestrator",
        )
        ready = await client.get("/readyz")
        assert ready.json() == {"status": "ready", "role": "orchestrator", "problems": []}
        problems.append("stuck")
        unready = await client.get("/readyz")
        assert (unready.status_code, unready.json()["problems"]) == (503, ["stuck"])
        assert (await client.get("/healthz")).status_code == 200
        lines = (await client.get("/metrics")).text.splitlines()
    assert {"penstock_a 1.5", 'penstock_b{partition="3"} 2.0', 'penstock_b{partition="4"} 0.0'} <= set(lines)


class Folding:
    """Two partitions, and a clock."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.lags = {0: 0, 1: 0}
        self.offsets = {0: 5, 1: 5}
        self.check = ProgressCheck(lambda: self.lags, lambda: self.offsets, lambda: self.now_ms)

    def after(self, ms: int) -> list[str]:
        self.now_ms += ms
        return self.check()


def test_who_is_behind_and_does_not_move_is_not_ready():
    folding = Folding()
    folding.lags[1] = 7
    assert folding.after(0) == []
    assert folding.after(STALLED_MS - 1) == []
    assert folding.after(1) == ["partition 1 is 7 records behind and does not move"]
    folding.offsets[1] += 1
    assert folding.after(0) == []


def test_who_is_not_behind_may_stand_still():
    folding = Folding()
    folding.after(0)
    assert folding.after(10 * STALLED_MS) == []
    # The time at rest does not count once there is something to do.
    folding.lags[0] = 1
    assert folding.after(1) == []


def test_who_is_behind_and_moves_is_ready():
    folding = Folding()
    folding.lags[0] = 1_000
    for _ in range(5):
        folding.offsets[0] += 1
        assert folding.after(STALLED_MS // 2) == []
