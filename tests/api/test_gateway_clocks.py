"""Workers that speak HTTP on machines whose clocks were set back: their incarnations look older than they are."""

from __future__ import annotations

from tests.api.harness import Bench


async def test_an_earlier_incarnation_is_let_in_once_the_later_one_is_silent(whole: Bench) -> None:
    await whole.enqueue()
    assert await whole.fetch(incarnation="b")
    body = {"worker": "w1", "types": ["noop"], "incarnation": "a"}
    refused = await whole.http.post("/api/v1/worker/fetch", json=body)
    assert refused.status_code == 409
    later = whole.deps.gateway.worker("w1", "b")
    assert later is not None
    later.heard_ms -= later.session.profile.lease_ms + 1
    # Being refused is no sign of life of the one that is silent.
    beat = await whole.http.post(
        "/api/v1/worker/heartbeat", json={"worker": "w1", "incarnation": "a", "leases": []}
    )
    assert beat.status_code == 200
    job = await whole.enqueue()
    # Room for two: what the silent one holds counts until its lease has run out.
    [fetched] = await whole.fetch(incarnation="a", max=2)
    assert fetched["id"] == job["id"]
    assert whole.deps.gateway.sessions == 1
