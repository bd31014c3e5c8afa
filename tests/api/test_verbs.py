"""Changing jobs over HTTP: each verb does what it says or answers 409, and two that race both get true answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from penstock.log.memory import Fault
from tests.api.harness import Bench, break_log, mend_log
from tests.waiting import PATIENCE_S

LATER = {"delay_ms": 60_000}


WANTED_AGAIN = ("ready", "active")
"""A worker that has just reported may be leased the job before it has said that it asks for no more."""


async def ask(
    found: Bench, job_id: str, verb: str, body: dict[str, Any] | None = None, **headers: str
) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if verb == "delete":
        return await found.http.delete(f"/api/v1/jobs/{job_id}", headers=sent)
    return await found.http.post(f"/api/v1/jobs/{job_id}/{verb}", json=body or {}, headers=sent)


async def done(
    found: Bench, job_id: str, verb: str, body: dict[str, Any] | None = None, **headers: str
) -> dict[str, Any]:
    answer = await ask(found, job_id, verb, body, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["penstock-position"]
    changed: dict[str, Any] = answer.json()
    return changed


async def refused(found: Bench, job_id: str, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await ask(found, job_id, verb, body)
    assert answer.status_code == 409, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == "conflict"
    return problem


async def total(found: Bench, **filters: str) -> int:
    answer = await found.http.get("/api/v1/jobs", params=filters)
    return int(answer.json()["total"])


async def no_longer(found: Bench, job_id: str, *states: str) -> dict[str, Any]:
    """The job, once it is in none of `states`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            job = await found.job(job_id)
            if job["state"] not in states:
                return job
            await asyncio.sleep(0.05)


class TestWaiting:
    async def test_cancel(self, whole: Bench) -> None:
        job = await whole.enqueue()
        changed = await done(whole, job["id"], "cancel", {"reason": "no longer wanted"})
        assert (changed["state"], changed["cancel_requested"]) == ("cancelled", False)
        assert changed["finished_at"]
        problem = await refused(whole, job["id"], "cancel")
        assert "cancelled" in problem["detail"]
        assert problem["job_state"] == "cancelled"
        items = (await whole.http.get(f"/api/v1/jobs/{job['id']}/history")).json()["items"]
        told = [(item["type"], item["outcome"], item.get("reason")) for item in items]
        assert told == [
            ("Enqueued", "applied", None),
            ("CancelRequested", "applied", "no longer wanted"),
            ("CancelRequested", "illegal", None),
        ]

    async def test_hold_and_unhold(self, whole: Bench) -> None:
        job = await whole.enqueue()
        assert (await done(whole, job["id"], "hold"))["state"] == "held"
        assert await whole.fetch(wait_ms=200) == []
        assert "held" in (await refused(whole, job["id"], "hold"))["detail"]
        assert (await done(whole, job["id"], "unhold"))["state"] == "ready"
        [given] = await whole.fetch()
        assert given["id"] == job["id"]
        assert "active" in (await refused(whole, job["id"], "unhold"))["detail"]

    async def test_reschedule(self, whole: Bench) -> None:
        job = await whole.enqueue(**LATER)
        changed = await done(whole, job["id"], "reschedule", {"run_at": "2100-01-01T00:00:00Z"})
        assert (changed["state"], changed["scheduled_at"]) == ("scheduled", "2100-01-01T00:00:00.000Z")
        # A time that comes soon is a timer of its own.
        await done(whole, job["id"], "reschedule", {"delay_ms": 50})
        [given] = await whole.fetch()
        assert given["id"] == job["id"]
        other = await whole.enqueue(**LATER)
        assert (await done(whole, other["id"], "reschedule", {"delay_ms": 0}))["state"] == "ready"

    async def test_priority_and_move(self, whole: Bench) -> None:
        first, second = await whole.enqueue(), await whole.enqueue()
        assert (await done(whole, second["id"], "priority", {"priority": "critical"}))[
            "priority"
        ] == "critical"
        [given] = await whole.fetch()
        assert given["id"] == second["id"]
        moved = await done(whole, first["id"], "move", {"queue": "slow", "pool": "gpu"})
        assert (moved["queue"], moved["pool"], moved["state"]) == ("slow", "gpu", "ready")
        assert await whole.fetch("w2", wait_ms=200) == []
        [given] = await whole.fetch("w3", pool="gpu")
        assert given["id"] == first["id"]
        counts = (await whole.http.get("/api/v1/counts")).json()
        assert counts["queues"] == {"default": 1, "slow": 1}

    async def test_delete(self, whole: Bench) -> None:
        job = await whole.enqueue(id="gone")
        assert await total(whole) == 1
        assert (await done(whole, "gone", "delete"))["state"] == "deleted"
        assert await total(whole) == 0
        assert (await whole.http.get("/api/v1/counts")).json()["total"] == 0
        answer = await whole.http.get("/api/v1/jobs/gone")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_deleted")
        again = await ask(whole, "gone", "delete")
        assert (again.status_code, again.json()["code"]) == (404, "job_deleted")
        history = (await whole.http.get("/api/v1/jobs/gone/history")).json()
        assert [item["type"] for item in history["items"]] == ["Enqueued", "Deleted"]
        same = await whole.http.post("/api/v1/jobs", json={"type": "noop", "id": job["id"]})
        assert (same.status_code, same.json()["code"]) == (409, "id_in_use")
        assert "deleted" in same.json()["detail"]
        assert await whole.fetch(wait_ms=200) == []


class TestRunning:
    async def test_cancel_is_told_to_the_worker_and_acknowledged(self, whole: Bench) -> None:
        job = await whole.enqueue()
        [given] = await whole.fetch()
        changed = await done(whole, job["id"], "cancel")
        assert (changed["state"], changed["cancel_requested"]) == ("active", True)
        assert "being cancelled" in (await refused(whole, job["id"], "cancel"))["detail"]
        signals: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not signals:
                signals = await whole.heartbeat(given["lease"])
                await asyncio.sleep(0.05)
        assert signals[0]["type"] == "CancelJob"
        [item] = await whole.report(
            {"type": "Returned", "job": job["id"], "lease": given["lease"], "reason": "cancelled"}
        )
        assert item["outcome"] == "applied"
        assert (await whole.job(job["id"]))["state"] == "cancelled"

    async def test_what_only_waiting_jobs_can_be_asked(self, whole: Bench) -> None:
        job = await whole.enqueue()
        await whole.fetch()
        for verb, body in (
            ("hold", {}),
            ("reschedule", {"delay_ms": 1}),
            ("priority", {"priority": "low"}),
            ("move", {"queue": "q"}),
            ("retry", {}),
            ("delete", {}),
        ):
            problem = await refused(whole, job["id"], verb, body)
            assert problem["job_state"] == "active", verb
            assert "active" in problem["detail"], verb


class TestEnded:
    async def _dead(self, whole: Bench, **fields: Any) -> str:
        job = await whole.enqueue(max_attempts=1, **fields)
        [given] = await whole.fetch()
        await whole.report(
            {"type": "Failed", "job": job["id"], "lease": given["lease"], "error": {"code": "boom"}}
        )
        assert (await whole.job(job["id"]))["state"] == "dead"
        return str(job["id"])

    async def test_retry(self, whole: Bench) -> None:
        job_id = await self._dead(whole)
        changed = await done(whole, job_id, "retry", {"attempts": 3})
        assert changed["state"] in WANTED_AGAIN
        assert changed["max_attempts"] == 4
        assert [error["code"] for error in changed["errors"]] == ["boom"]
        [given] = await whole.fetch()
        assert (given["id"], given["attempt"]) == (job_id, 2)

    async def test_a_retry_that_waits_is_made_now(self, whole: Bench) -> None:
        job = await whole.enqueue(backoff={"kind": "fixed", "base_ms": 60_000})
        [given] = await whole.fetch()
        await whole.report(
            {"type": "Failed", "job": job["id"], "lease": given["lease"], "error": {"code": "boom"}}
        )
        assert (await whole.job(job["id"]))["state"] == "retrying"
        assert (await done(whole, job["id"], "retry"))["state"] in WANTED_AGAIN
        [again] = await whole.fetch()
        assert again["attempt"] == 2

    async def test_delete(self, whole: Bench) -> None:
        job_id = await self._dead(whole)
        assert (await done(whole, job_id, "delete"))["state"] == "deleted"
        assert await total(whole, state="dead") == 0


class TestClone:
    async def test_as_it_is_and_as_it_began(self, whole: Bench) -> None:
        job = await whole.enqueue(
            payload={"a": [1, None]}, tags=["x"], metadata={"m": 1}, max_attempts=7, timeout_ms=99,
            backoff={"kind": "fixed", "base_ms": 5}, **LATER,
        )  # fmt: skip
        await done(whole, job["id"], "move", {"queue": "other"})
        answer = await ask(whole, job["id"], "clone")
        assert answer.status_code == 201, answer.text
        clone = answer.json()
        assert answer.headers["location"] == f"/api/v1/jobs/{clone['id']}"
        assert clone["id"] != job["id"]
        same = ("type", "payload", "tags", "metadata", "max_attempts", "timeout_ms", "backoff", "priority")
        assert {name: clone[name] for name in same} == {name: job[name] for name in same}
        assert (clone["queue"], clone["state"]) == ("other", "ready")
        after = answer.headers["penstock-position"]
        history = await whole.http.get(f"/api/v1/jobs/{clone['id']}/history", params={"after": after})
        assert history.json()["items"][0]["cause"] == job["enqueued_event"]

    async def test_with_changes(self, whole: Bench) -> None:
        job = await whole.enqueue(payload=1, priority="low")
        answer = await ask(
            whole, job["id"], "clone", {"payload": {"b": 2}, "priority": "high", "id": "mine", **LATER}
        )
        assert answer.status_code == 201, answer.text
        clone = answer.json()
        assert (clone["id"], clone["payload"], clone["priority"], clone["state"]) == (
            "mine", {"b": 2}, "high", "scheduled",
        )  # fmt: skip
        again = await ask(
            whole, job["id"], "clone", {"payload": {"b": 2}, "priority": "high", "id": "mine", **LATER}
        )
        assert again.status_code == 200
        other = await ask(whole, job["id"], "clone", {"payload": 3, "id": "mine"})
        assert (other.status_code, other.json()["code"]) == (409, "id_in_use")

    async def test_without_what_is_null(self, whole: Bench) -> None:
        settings = {
            "queue": "q", "pool": "p", "priority": "low", "max_attempts": 7, "backoff": {"kind": "fixed", "base_ms": 5},
            "payload": {"a": 1}, "tags": ["x"], "metadata": {"m": 1}, "timeout_ms": 99, "concurrency_key": "k",
            "batch": "b", "workflow": "w",
        }  # fmt: skip
        job, new = await whole.enqueue(**settings), await whole.enqueue()
        bare = await ask(whole, job["id"], "clone", dict.fromkeys(settings))
        assert bare.status_code == 201, bare.text
        assert {name: bare.json()[name] for name in settings} == {name: new[name] for name in settings}
        assert "~" not in bare.json()["id"]
        as_it_is = (await ask(whole, job["id"], "clone", {"run_at": None, "id": None, "unique": None})).json()
        assert {name: as_it_is[name] for name in settings} == {name: job[name] for name in settings}

    async def test_the_same_without_something_is_the_same_clone(self, whole: Bench) -> None:
        job = await whole.enqueue(payload={"a": 1}, batch="b")
        asked = {"id": "bare", "payload": None, "batch": None}
        answers = [await ask(whole, job["id"], "clone", asked) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 200]
        other = await ask(whole, job["id"], "clone", {"id": "bare", "batch": None})
        assert (other.status_code, other.json()["code"]) == (409, "id_in_use")

    async def test_what_is_not_allowed(self, whole: Bench) -> None:
        job = await whole.enqueue()
        untyped = await ask(whole, job["id"], "clone", {"type": None})
        assert (untyped.status_code, untyped.json()["errors"][0]["field"]) == (422, "type")
        large = await whole.http.post(f"/api/v1/jobs/{job['id']}/clone", content=b'{"payload":{"n":1e400}}')
        assert (large.status_code, large.json()["errors"][0]["field"]) == (422, "payload")
        wrong = await ask(whole, job["id"], "clone", {"priority": "urgent", "other": 1})
        assert wrong.status_code == 422
        assert {error["field"] for error in wrong.json()["errors"]} == {"priority", "other"}
        assert (await ask(whole, "nobody", "clone")).status_code == 404


class TestAsking:
    async def test_a_job_that_was_put_in_just_before_is_found(self, whole: Bench) -> None:
        for _ in range(20):
            answer = await whole.http.post("/api/v1/jobs", json={"type": "noop"})
            assert (await done(whole, answer.json()["id"], "cancel"))["state"] == "cancelled"

    async def test_the_same_wish_is_done_once_and_answered_alike(self, whole: Bench) -> None:
        job = await whole.enqueue()
        first = await done(whole, job["id"], "cancel", idempotency_key="once")
        again = await done(whole, job["id"], "cancel", idempotency_key="once")
        assert again == first
        assert (await done(whole, job["id"], "retry", idempotency_key="once"))["state"] == "ready"
        # The job lives again, and the old wish is still the old one.
        await done(whole, job["id"], "cancel", idempotency_key="once")
        assert (await whole.job(job["id"]))["state"] == "ready"
        assert (await done(whole, job["id"], "cancel", idempotency_key="twice"))["state"] == "cancelled"

    async def test_a_refusal_stays_one(self, whole: Bench) -> None:
        job = await whole.enqueue(**LATER)
        for _ in range(2):
            answer = await ask(whole, job["id"], "unhold", idempotency_key="u")
            assert answer.status_code == 409
            await ask(whole, job["id"], "hold", idempotency_key="h")

    @pytest.mark.parametrize(
        ("verb", "body", "field"),
        [
            ("reschedule", {}, "run_at"),
            ("reschedule", {"delay_ms": 1, "run_at": "2030-01-01T00:00:00Z"}, "run_at"),
            ("reschedule", {"delay_ms": -1}, "delay_ms"),
            ("reschedule", {"run_at": "tomorrow"}, "run_at"),
            ("priority", {}, "priority"),
            ("priority", {"priority": "urgent"}, "priority"),
            ("move", {}, "queue"),
            ("move", {"queue": "no name!"}, "queue"),
            ("retry", {"attempts": -1}, "attempts"),
            ("hold", {"why": "x"}, "why"),
            ("cancel", {"reason": "x" * 257}, "reason"),
        ],
    )
    async def test_bad_input_names_its_field(
        self, whole: Bench, verb: str, body: dict[str, Any], field: str
    ) -> None:
        job = await whole.enqueue(**LATER)
        answer = await ask(whole, job["id"], verb, body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
        assert [error["field"] for error in answer.json()["errors"]] == [field]
        assert (await whole.job(job["id"]))["position"] == job["position"]

    async def test_bodies_that_cannot_be_read(self, whole: Bench) -> None:
        job = await whole.enqueue()
        path = f"/api/v1/jobs/{job['id']}/cancel"
        assert (await whole.http.post(path)).status_code == 200
        assert (await whole.http.post(path, content=b"{")).status_code == 400
        assert (
            await whole.http.post(path, content=b"x", headers={"content-type": "text/plain"})
        ).status_code == 415
        assert (await whole.http.post(path, content=b" " * 10_000)).status_code == 413
        bad_key = await ask(whole, job["id"], "cancel", idempotency_key="with blank")
        assert (bad_key.status_code, bad_key.json()["errors"][0]["field"]) == (422, "Idempotency-Key")

    async def test_nobody_is_there(self, whole: Bench) -> None:
        await whole.enqueue()
        for verb in ("cancel", "retry", "hold", "unhold", "delete", "clone"):
            answer = await ask(whole, "nobody", verb)
            assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found"), verb

    async def test_a_log_that_does_not_tell(self, whole: Bench) -> None:
        job = await whole.enqueue()
        break_log(whole, Fault.WRITTEN_UNKNOWN)
        answer = await ask(whole, job["id"], "cancel")
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["job_id"]) == (503, "append_unknown", job["id"])
        assert answer.headers["retry-after"]
        mend_log(whole)
        # It was written after all: with the key that the answer names it is the same wish, and done.
        again = await done(whole, job["id"], "cancel", idempotency_key=problem["idempotency_key"])
        assert again["state"] == "cancelled"


class TestRaces:
    async def test_of_two_racing_wishes_one_wins_and_both_are_told(self, whole: Bench) -> None:
        jobs = [(await whole.enqueue(**LATER))["id"] for _ in range(20)]
        found: Counter[tuple[int, ...]] = Counter()
        for job_id in jobs:
            answers = await asyncio.gather(
                ask(whole, job_id, "cancel"),
                ask(whole, job_id, "delete"),
                ask(whole, job_id, "cancel"),
            )
            statuses = tuple(sorted(answer.status_code for answer in answers))
            found[statuses] += 1
            state = (await whole.http.get(f"/api/v1/jobs/{job_id}")).json().get("state", "deleted")
            # What was cancelled may be deleted, but not the other way round.
            assert state == "deleted"
            cancels = [answers[0].status_code, answers[2].status_code]
            assert cancels.count(200) <= 1
            assert answers[1].status_code == 200
        assert sum(found.values()) == len(jobs)

    async def test_hundreds_of_changes_against_a_working_worker(self, whole: Bench) -> None:
        """Whatever wins, each job ends once, and each answer was true when it was given."""
        jobs = [(await whole.enqueue(id=f"race-{number}"))["id"] for number in range(60)]
        told: dict[str, list[tuple[str, int]]] = {job: [] for job in jobs}
        busy = True

        async def work() -> int:
            ended = 0
            while True:
                given = await whole.fetch(max=5, wait_ms=300)
                if not given and not busy:
                    return ended
                events = [{"type": "Succeeded", "job": one["id"], "lease": one["lease"]} for one in given]
                outcomes = await whole.report(*events) if events else []
                ended += sum(item["outcome"] == "applied" for item in outcomes)

        async def change(job_id: str, number: int) -> None:
            for verb, body in (
                ("hold", {}),
                ("priority", {"priority": "high"}),
                ("cancel", {}),
                ("unhold", {}),
                ("retry", {}),
                ("unhold", {}),
            )[number % 3 :]:
                answer = await ask(whole, job_id, verb, body)
                told[job_id].append((verb, answer.status_code))

        worker = asyncio.create_task(work())
        await asyncio.gather(*(change(job_id, number) for number, job_id in enumerate(jobs)))
        # Whatever may run is run before the worker goes. A cancel between lease and delivery is settled without it.
        ended = [await no_longer(whole, job_id, "ready", "active") for job_id in jobs]
        busy = False
        succeeded = await worker
        assert {status for answers in told.values() for _, status in answers} <= {200, 409}
        states = Counter[str]()
        for job in ended:
            job_id = job["id"]
            states[job["state"]] += 1
            history = (await whole.http.get(f"/api/v1/jobs/{job_id}/history")).json()["items"]
            applied = [item["type"] for item in history if item["outcome"] == "applied"]
            assert applied.count("Succeeded") <= 1
            kinds = {"hold": "Held", "priority": "Edited", "cancel": "CancelRequested", "unhold": "Unheld",
                     "retry": "RetryRequested"}  # fmt: skip
            done_here = Counter(kinds[verb] for verb, status in told[job_id] if status == 200)
            assert done_here == Counter(kind for kind in applied if kind in kinds.values())
        assert states["succeeded"] == succeeded
        assert sum(states.values()) == len(jobs)
        assert set(states) <= {"succeeded", "cancelled", "held"}
