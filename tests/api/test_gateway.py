"""Workers that speak HTTP: fetch, report, heartbeat, and what happens when either side goes away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from penstock.api import reports
from penstock.api.gateway import FORGET_MS
from penstock.api.remote_worker import Named, RemoteWorker, partition_of_lease
from penstock.log.memory import Fault
from penstock.schemas.codec import encode_line
from penstock.schemas.errors import ReadBehind
from penstock.schemas.events import CancelRequested
from penstock.schemas.ids import partition_of
from penstock.schemas.messages import Drain, LeaseGone
from penstock.schemas.position import unpack
from penstock.workers.transport import WorkerProfile
from tests.api.harness import Bench, bench, break_log, mend_log
from tests.waiting import PATIENCE_S, until


def succeeded(job: dict[str, Any], result: Any = None) -> dict[str, Any]:
    return {"type": "Succeeded", "job": job["id"], "lease": job["lease"], "result": result}


def progressed(job: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "Progressed", "job": job["id"], "lease": job["lease"], **fields}


async def test_a_job_is_granted_before_the_fetch_answers_and_reported_back(whole: Bench) -> None:
    job = await whole.enqueue(payload={"n": 1}, queue="q", timeout_ms=60_000, metadata={"m": 1})
    [fetched] = await whole.fetch()
    assert fetched["deadline"].endswith("Z")
    assert int(fetched["fence"]) > 0
    expected = {
        "id": job["id"],
        "type": "noop",
        "queue": "q",
        "payload": {"n": 1},
        "attempt": 1,
        "lease_ms": 30_000,
    }
    assert {name: fetched[name] for name in expected} == expected
    assert fetched["checkpoint"] is None
    active = await whole.until(job["id"], "active")
    assert (active["worker"], active["attempt"]) == ("w1", 1)
    items = await whole.report(
        progressed(fetched, percent=40, message="half", checkpoint={"at": 3}),
        progressed(fetched, percent=80),
        succeeded(fetched, {"ok": True}),
    )
    assert [item["outcome"] for item in items] == ["applied"] * 3
    done = await whole.job(job["id"])
    assert (done["state"], done["result"], done["checkpoint"]) == ("succeeded", {"ok": True}, {"at": 3})
    assert done["progress"] == {"percent": 80.0, "message": "half"}
    history = (await whole.http.get(f"/api/v1/jobs/{job['id']}/history")).json()["items"]
    assert [item["type"] for item in history] == [
        "Enqueued",
        "Leased",
        "Progressed",
        "Progressed",
        "Succeeded",
    ]
    assert history[-1]["actor"] == "worker:w1"
    # Sent again, the report changes nothing.
    assert [item["outcome"] for item in await whole.report(succeeded(fetched, {"ok": True}))] == ["duplicate"]


async def test_a_parked_fetch_sees_a_job_that_comes_later(whole: Bench) -> None:
    fetching = asyncio.create_task(whole.fetch(max=5, wait_ms=20_000))
    await until(lambda: whole.deps.gateway.parked == 1)
    job = await whole.enqueue()
    [fetched] = await fetching
    assert fetched["id"] == job["id"]
    assert whole.deps.gateway.parked == 0


async def test_a_fetch_without_jobs_answers_empty_when_its_time_is_over(whole: Bench) -> None:
    assert await whole.fetch(wait_ms=0) == []
    assert whole.deps.gateway.sessions == 1


async def test_several_jobs_at_once_and_no_more_than_asked_for(whole: Bench) -> None:
    ids = {(await whole.enqueue())["id"] for _ in range(5)}
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < 5:
            got = await whole.fetch(max=2)
            assert len(got) <= 2
            await whole.heartbeat(*[job["lease"] for job in got])
            seen += got
    assert {job["id"] for job in seen} == ids
    assert [item["outcome"] for item in await whole.report(*map(succeeded, seen))] == ["applied"] * 5


async def test_fetches_of_one_worker_get_their_own_types(whole: Bench) -> None:
    resizing = asyncio.create_task(whole.fetch(types=["resize"]))
    mailing = asyncio.create_task(whole.fetch(types=["mail"]))
    await until(lambda: whole.deps.gateway.parked == 2)
    mail, resize = await whole.enqueue(type="mail"), await whole.enqueue(type="resize")
    assert [job["id"] for job in await mailing] == [mail["id"]]
    assert [job["id"] for job in await resizing] == [resize["id"]]


async def test_a_failed_job_is_tried_again_and_a_final_one_is_dead(whole: Bench) -> None:
    job = await whole.enqueue(backoff={"kind": "none"}, max_attempts=3)
    error = {"code": "oops", "message": "x" * 3_000, "details": {"line": 7}}
    [first] = await whole.fetch()
    event = {"type": "Failed", "job": job["id"], "lease": first["lease"], "error": error}
    assert (await whole.report(event))[0]["outcome"] == "applied"
    [second] = await whole.fetch()
    assert (second["attempt"], int(second["fence"]) > int(first["fence"])) == (2, True)
    stale = await whole.report(succeeded(first))
    assert stale[0]["outcome"] == "stale"
    final = event | {"lease": second["lease"], "error": error | {"retryable": False, "details": "y" * 20_000}}
    assert (await whole.report(final))[0]["outcome"] == "applied"
    dead = await whole.until(job["id"], "dead")
    assert [entry["attempt"] for entry in dead["errors"]] == [1, 2]
    assert dead["errors"][0]["details"] == {"line": 7}
    assert len(dead["errors"][0]["message"]) == 2_000
    assert "too large" in dead["errors"][1]["details"]["dropped"]


async def test_a_job_given_back_costs_no_attempt(whole: Bench) -> None:
    job = await whole.enqueue()
    [first] = await whole.fetch()
    event = {"type": "Returned", "job": job["id"], "lease": first["lease"], "reason": "shutting down"}
    assert (await whole.report(event))[0]["outcome"] == "applied"
    [again] = await whole.fetch(worker="w2")
    assert (again["id"], again["attempt"]) == (job["id"], 1)


async def test_of_two_outcomes_in_one_report_the_second_is_told_that_it_came_too_late(whole: Bench) -> None:
    await whole.enqueue()
    [fetched] = await whole.fetch()
    event = {"type": "Returned", "job": fetched["id"], "lease": fetched["lease"], "reason": "no room"}
    outcomes = [item["outcome"] for item in await whole.report(event, succeeded(fetched), event)]
    assert outcomes == ["applied", "stale", "duplicate"]


async def test_a_result_that_is_too_large_fails_the_job_for_good(whole: Bench) -> None:
    job = await whole.enqueue()
    [fetched] = await whole.fetch()
    [item] = await whole.report(succeeded(fetched, "x" * 300_000))
    assert item["outcome"] == "applied"
    assert "300002 bytes" in item["message"]
    dead = await whole.until(job["id"], "dead")
    assert dead["errors"][0]["code"] == "result_too_large"


async def test_events_that_are_wrong_are_named_and_leave_the_others_alone(whole: Bench) -> None:
    await whole.enqueue()
    [fetched] = await whole.fetch()
    items = await whole.report(
        {"type": "Exploded", "job": "x", "lease": "0.0.1"},
        progressed(fetched, percent=140),
        progressed(fetched, checkpoint="x" * 140_000),
        succeeded(fetched) | {"lease": "nonsense"},
        succeeded(fetched) | {"extra": 1},
        succeeded(fetched)
        | {"job": fetched["id"] + "x", "lease": f"{partition_of(fetched['id'] + 'x', 4)}.0.99"},
        succeeded(fetched),
    )
    outcomes = [item["outcome"] for item in items]
    assert outcomes == ["invalid"] * 5 + ["unknown_job", "applied"]
    for item, word in zip(items, ["Exploded", "percent", "checkpoint", "lease", "extra"], strict=False):
        assert word in item["message"]
    assert items[0]["job"] == "x"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("fetch", {"worker": "w"}, "types"),
        ("fetch", {"worker": "w", "types": []}, "types"),
        ("fetch", {"worker": "w", "types": ["a"], "max": 0}, "max"),
        ("fetch", {"worker": "w", "types": ["a"], "lease_ms": 10}, "lease_ms"),
        ("fetch", {"worker": "w", "types": ["a"], "typo": 1}, "typo"),
        ("report", {"worker": "w", "events": []}, "events"),
        ("heartbeat", {"worker": "", "leases": []}, "worker"),
        ("heartbeat", {"worker": "w", "leases": [1]}, "leases[0]"),
    ],
)
async def test_bad_requests_name_the_field(api: Bench, path: str, body: dict[str, Any], field: str) -> None:
    answer = await api.http.post(f"/api/v1/worker/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_a_grant_whose_answer_was_lost_is_handed_out_again(whole: Bench) -> None:
    """G1: the client never names it, so it may not have it."""
    await whole.enqueue()
    [first] = await whole.fetch()
    [again] = await whole.fetch(wait_ms=5_000)
    assert (again["lease"], again["fence"]) == (first["lease"], first["fence"])


async def test_a_named_grant_is_not_handed_out_again(whole: Bench) -> None:
    await whole.enqueue()
    [first] = await whole.fetch()
    assert await whole.heartbeat(first["lease"]) == []
    assert await whole.fetch(wait_ms=1_500) == []


async def test_the_leases_in_a_fetch_name_them_too(whole: Bench) -> None:
    await whole.enqueue()
    [first] = await whole.fetch()
    assert await whole.fetch(wait_ms=1_500, leases=[first["lease"]]) == []


async def test_a_grant_for_a_fetch_that_was_given_up_goes_to_another_or_back(whole: Bench) -> None:
    """G1: a late grant is another waiting fetch's, or is returned."""
    worker = await whole.deps.gateway.open(WorkerProfile(worker="w1", incarnation="", concurrency=0))
    held = worker.session.held
    # A fetch for another type lends its room, so the grant finds nobody who waits for it.
    waiting = asyncio.create_task(worker.wait(frozenset({"other"}), 1, 20_000))
    await until(lambda: worker.parked == 1)
    worker.wants(["noop"])
    first = await whole.enqueue()
    await until(lambda: bool(held))
    [fetched] = await whole.fetch()
    assert fetched["id"] == first["id"]
    await whole.report(succeeded(fetched))
    worker.wants(["noop"])
    second = await whole.enqueue()
    await until(lambda: bool(held))
    await until(lambda: not held)
    [again] = await whole.fetch(worker="w2")
    assert (again["id"], again["attempt"]) == (second["id"], 1)
    # A grant may be handed out before the read model has folded it.
    leased = unpack(partition_of(second["id"], whole.topics.partitions), int(again["fence"]))
    address = f"/api/v1/jobs/{second['id']}/history"
    history = (await whole.http.get(address, params={"after": str(leased)})).json()["items"]
    assert [item["type"] for item in history] == ["Enqueued", "Leased", "Returned", "Leased"]
    assert history[2]["reason"] == "surplus"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_what_was_granted_to_a_client_that_is_gone_is_kept_for_the_next_fetch(whole: Bench) -> None:
    worker = await whole.deps.gateway.open(WorkerProfile(worker="w1", incarnation="", concurrency=0))
    waiting = asyncio.create_task(worker.wait(frozenset({"noop"}), 1, 20_000))
    await until(lambda: worker.parked == 1)
    receive = worker.receive

    def gone_just_now(leases: Any) -> None:
        receive(leases)
        waiting.cancel()

    worker.receive = gone_just_now
    job = await whole.enqueue()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    [fetched] = await whole.fetch()
    assert (fetched["id"], fetched["attempt"]) == (job["id"], 1)


async def test_a_client_that_is_gone_is_given_nothing_again(whole: Bench) -> None:
    worker = await whole.deps.gateway.open(WorkerProfile(worker="w1", incarnation="", concurrency=0))
    waiting = asyncio.create_task(worker.wait(frozenset({"noop"}), 1, 20_000))
    await until(lambda: worker.parked == 1)
    receive = worker.receive

    def gone_just_now(leases: Any) -> None:
        receive(leases)
        waiting.cancel()

    worker.receive = gone_just_now
    job = await whole.enqueue()
    await asyncio.wait({waiting})
    await until(lambda: worker.session.credits.capacity == 0)
    await until(lambda: not worker.session.held)
    assert worker.session.credits.capacity == 0
    [again] = await whole.fetch(worker="w2")
    assert (again["id"], again["attempt"]) == (job["id"], 1)


async def test_a_cancel_reaches_the_holder_at_every_heartbeat_until_it_reports(whole: Bench) -> None:
    job = await whole.enqueue()
    [fetched] = await whole.fetch()
    cancel = CancelRequested(
        id="c1", job=job["id"], of=f"enq.{job['id']}", not_after=whole.deps.now_ms() + 60_000, reason="enough"
    )
    partition = partition_of(job["id"], whole.topics.partitions)
    await whole.log.append(whole.topics.jobs, partition, encode_line(cancel))
    signals: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while not signals:
            signals = await whole.heartbeat(fetched["lease"])
            await asyncio.sleep(0.02)
    assert [(signal["type"], signal["job"], signal["lease"]) for signal in signals] == [
        ("CancelJob", job["id"], fetched["lease"])
    ]
    assert (await whole.heartbeat(fetched["lease"]))[0]["type"] == "CancelJob"
    event = {"type": "Returned", "job": job["id"], "lease": fetched["lease"]}
    assert (await whole.report(event))[0]["outcome"] == "applied"
    assert (await whole.job(job["id"]))["state"] == "cancelled"
    assert await whole.heartbeat(fetched["lease"]) == []


async def test_a_client_that_vanishes_loses_its_lease(whole: Bench) -> None:
    job = await whole.enqueue()
    [first] = await whole.fetch(lease_ms=1_000)
    [again] = await whole.fetch(worker="w2", wait_ms=15_000)
    assert (again["id"], again["attempt"]) == (job["id"], 2)
    signals = await whole.heartbeat(first["lease"])
    assert [(signal["type"], signal["lease"]) for signal in signals] == [("LeaseGone", first["lease"])]


async def test_a_heartbeat_keeps_a_lease(whole: Bench) -> None:
    job = await whole.enqueue()
    [fetched] = await whole.fetch(lease_ms=2_000)
    for _ in range(15):
        await asyncio.sleep(0.2)
        assert await whole.heartbeat(fetched["lease"]) == []
    assert (await whole.job(job["id"]))["attempt"] == 1
    assert (await whole.report(succeeded(fetched)))[0]["outcome"] == "applied"


async def test_a_lease_that_came_through_another_gateway_is_renewed_by_its_job(whole: Bench) -> None:
    """Two APIs behind one address, or a restart: with its job a lease can be named by any of them."""
    import dataclasses

    import httpx

    from penstock.api.app import create_app
    from penstock.api.gateway import Gateway

    job = await whole.enqueue()
    [fetched] = await whole.fetch(lease_ms=3_000)
    async with Gateway(whole.log, whole.topics, "another") as other:
        deps = dataclasses.replace(whole.deps, gateway=other)
        transport = httpx.ASGITransport(create_app(deps))
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as http:
            body = {"worker": "w1", "leases": [fetched["lease"]]}
            unknown = (await http.post("/api/v1/worker/heartbeat", json=body)).json()["signals"]
            assert unknown == [{"type": "LeaseGone", "lease": fetched["lease"], "reason": "unknown"}]
            body = {"worker": "w1", "leases": [{"lease": fetched["lease"], "job": job["id"]}]}
            for _ in range(20):
                answer = (await http.post("/api/v1/worker/heartbeat", json=body)).json()
                assert answer == {"signals": []}
                await asyncio.sleep(0.2)
            body = {"worker": "w1", "events": [succeeded(fetched)]}
            [item] = (await http.post("/api/v1/worker/report", json=body)).json()["items"]
            assert item["outcome"] == "applied"
    assert (await whole.job(job["id"]))["attempt"] == 1


async def test_a_newer_life_of_a_worker_replaces_the_older(whole: Bench) -> None:
    job = await whole.enqueue()
    [first] = await whole.fetch(incarnation="a")
    [again] = await whole.fetch(incarnation="b")
    assert (again["id"], again["attempt"]) == (job["id"], 2)
    assert again["lease"] != first["lease"]
    body = {"worker": "w1", "types": ["noop"], "incarnation": "a"}
    late = await whole.http.post("/api/v1/worker/fetch", json=body)
    assert (late.status_code, late.json()["code"]) == (409, "conflict")
    assert whole.deps.gateway.sessions == 1


async def test_a_worker_changes_its_pool_only_with_empty_hands(whole: Bench) -> None:
    await whole.enqueue(pool="gpu")
    [held] = await whole.fetch(pool="gpu")
    body = {"worker": "w1", "types": ["noop"], "pool": "cpu"}
    assert (await whole.http.post("/api/v1/worker/fetch", json=body)).status_code == 409
    await whole.report(succeeded(held))
    job = await whole.enqueue(pool="cpu")
    [fetched] = await whole.fetch(pool="cpu")
    assert fetched["id"] == job["id"]


async def test_a_drained_worker_gets_nothing_more(whole: Bench) -> None:
    assert await whole.fetch(wait_ms=0) == []
    worker = whole.deps.gateway.worker("w1", "")
    assert worker is not None
    worker.session.signal(Drain(worker="w1", stop=True))
    await whole.enqueue()
    assert await whole.fetch(wait_ms=500) == []
    assert await whole.heartbeat() == [{"type": "Drain", "stop": True}]


async def test_what_was_lost_between_heartbeats_is_told_once(whole: Bench) -> None:
    await whole.enqueue()
    [fetched] = await whole.fetch()
    worker = whole.deps.gateway.worker("w1", "")
    assert worker is not None
    worker.session.signal(
        LeaseGone(
            worker="w1",
            via=whole.deps.gateway.incarnation,
            job=fetched["id"],
            lease=fetched["lease"],
            reason="timeout",
        )
    )
    [signal] = await whole.heartbeat()
    assert (signal["type"], signal["reason"]) == ("LeaseGone", "timeout")
    assert await whole.heartbeat() == []


async def test_what_nobody_names_for_two_leases_is_let_go_even_if_nobody_says_so(whole: Bench) -> None:
    await whole.enqueue()
    [fetched] = await whole.fetch()
    worker = whole.deps.gateway.worker("w1", "")
    assert worker is not None
    lease = worker.session.held[fetched["lease"]]
    lease.renew_until_ms -= 2 * lease.delivery.lease_ms + 60_000
    await until(lambda: worker.session.held == {})
    [signal] = await whole.heartbeat()
    assert (signal["type"], signal["lease"], signal["reason"]) == ("LeaseGone", fetched["lease"], "expired")


async def test_progress_of_leases_that_nobody_holds_leaves_no_trail(whole: Bench) -> None:
    job = await whole.enqueue()
    await whole.heartbeat()
    assert await whole.fetch(types=["other"], wait_ms=0) == []
    partition = partition_of(job["id"], whole.topics.partitions)
    stranger = {"id": job["id"], "lease": f"{partition}.1.99"}
    await whole.report(progressed(stranger))
    worker = whole.deps.gateway.worker("w1", "")
    assert worker is not None
    await until(lambda: worker.progress_seqs == {})


async def test_a_client_that_is_silent_for_long_is_forgotten_and_may_come_back(whole: Bench) -> None:
    assert await whole.fetch(wait_ms=0) == []
    worker = whole.deps.gateway.worker("w1", "")
    assert isinstance(worker, RemoteWorker)
    worker.heard_ms -= FORGET_MS + 1_000
    await until(lambda: whole.deps.gateway.sessions == 0)
    job = await whole.enqueue()
    [fetched] = await whole.fetch()
    assert fetched["id"] == job["id"]
    await whole.heartbeat(fetched["lease"])
    assert (await whole.report(succeeded(fetched)))[0]["outcome"] == "applied"


async def test_stopping_answers_parked_fetches(tmp_path: Path) -> None:
    async with bench(tmp_path, orchestrate=True) as whole:
        fetching = asyncio.create_task(whole.fetch(wait_ms=60_000))
        await until(lambda: whole.deps.gateway.parked == 1)
        whole.deps.gateway.stop()
        assert await fetching == []
        assert await whole.fetch(wait_ms=60_000) == []


async def test_who_speaks_http_is_in_the_list_of_workers(whole: Bench) -> None:
    assert await whole.fetch(wait_ms=0, host="box", version="7") == []
    await until(lambda: bool(whole.deps.registry.live()))
    [worker] = (await whole.http.get("/api/v1/workers")).json()["items"]
    assert (worker["id"], worker["types"], worker["host"]) == ("w1", ["noop"], "box")
    assert worker["via"] == whole.deps.gateway.incarnation


def test_partition_of_lease() -> None:
    assert partition_of_lease("3.17.2", 4) == 3
    for text in ["4.0.1", "3.0", "3.0.1.2", "a.0.1", "", "-1.0.1", "٣.0.1", "1." + "9" * 30 + ".1"]:
        assert partition_of_lease(text, 4) is None
    assert Named("1.2.3").job == ""


async def test_a_report_whose_verdict_is_late_is_to_be_sent_again(whole: Bench) -> None:
    await whole.enqueue()
    [fetched] = await whole.fetch()
    real = whole.deps.read_model

    class Late:
        async def verdicts(self, *_: object) -> None:
            raise ReadBehind(behind=[])

    whole.deps.read_model = Late()
    assert [item["outcome"] for item in await whole.report(succeeded(fetched))] == ["unknown"]
    whole.deps.read_model = real
    assert [item["outcome"] for item in await whole.report(succeeded(fetched))] == ["duplicate"]


async def test_a_report_that_the_log_does_not_take_is_to_be_sent_again(
    whole: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "WRITE_S", 0.05)
    await whole.enqueue()
    [fetched] = await whole.fetch()
    break_log(whole, Fault.LOST_UNKNOWN)
    assert [item["outcome"] for item in await whole.report(succeeded(fetched))] == ["unknown"]
    worker = whole.deps.gateway.worker("w1", "")
    assert worker is not None
    # Nobody keeps it alive but the client: the outcome may never come.
    assert not worker.session.held[fetched["lease"]].finished
    mend_log(whole)
    monkeypatch.setattr(reports, "WRITE_S", 15.0)
    [item] = await whole.report(succeeded(fetched))
    assert item["outcome"] in {"applied", "duplicate"}
