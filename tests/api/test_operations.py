"""Changing many jobs at once: by ids or filter, counted before, with outcomes after, stopped, and taken up again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import httpx
import pytest

from penstock.api import operating
from penstock.api.operating import Operator
from penstock.api.orders import NEWER_OPERATION, OPERATION
from penstock.projections.port import SearchPage, SearchQuery
from penstock.schemas.codec import encode_line
from penstock.schemas.events import Enqueued, Raw
from penstock.schemas.ids import partition_of
from penstock.schemas.position import Position
from tests.api.harness import Bench
from tests.waiting import PATIENCE_S, until


async def begin(found: Bench, action: str, key: str = "", **asked: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await found.http.post("/api/v1/operations", json={"action": action, **asked}, headers=headers)


async def begun(found: Bench, action: str, **asked: Any) -> dict[str, Any]:
    answer = await begin(found, action, **asked)
    assert answer.status_code == 202, answer.text
    operation: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/api/v1/operations/{operation['id']}"
    return operation


async def ended(found: Bench, operation: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await found.http.get(f"/api/v1/operations/{operation['id']}")
            assert answer.status_code == 200, answer.text
            told: dict[str, Any] = answer.json()
            if told["finished_at"]:
                return told
            await asyncio.sleep(0.05)


async def done(found: Bench, action: str, **asked: Any) -> dict[str, Any]:
    told = await ended(found, await begun(found, action, **asked))
    assert told["state"] == "succeeded"
    return told


async def items(found: Bench, operation: dict[str, Any], limit: int = 1_000) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    cursor = ""
    while True:
        params = {"limit": limit, "cursor": cursor}
        page = (await found.http.get(f"/api/v1/operations/{operation['id']}/items", params=params)).json()
        jobs += page["items"]
        if page["next_cursor"] is None:
            return jobs
        cursor = page["next_cursor"]


async def some(found: Bench, count: int, **fields: Any) -> list[str]:
    answer = await found.http.post("/api/v1/jobs/bulk", json=[{"type": "noop", **fields}] * count)
    assert answer.status_code == 200
    await found.http.get("/api/v1/counts", params={"after": answer.headers["penstock-position"]})
    return [item["id"] for item in answer.json()["items"]]


async def states(found: Bench) -> Counter[str]:
    rows = (await found.http.get("/api/v1/counts")).json()["rows"]
    counted: Counter[str] = Counter()
    for row in rows:
        if row["type"] != OPERATION:
            counted[row["state"]] += row["jobs"]
    return counted


async def test_cancel_by_filter(whole: Bench) -> None:
    await some(whole, 30)
    await some(whole, 5, queue="other")
    told = await done(whole, "cancel", filter={"queue": "default"}, args={"reason": "no longer wanted"})
    assert (told["matched"], told["outcomes"]) == (30, {"applied": 30})
    assert await states(whole) == {"cancelled": 30, "ready": 5}
    [job] = (await whole.http.get("/api/v1/jobs", params={"queue": "default", "limit": 1})).json()["items"]
    history = (await whole.http.get(f"/api/v1/jobs/{job['id']}/history")).json()["items"]
    assert history[-1]["reason"] == "no longer wanted"
    assert history[-1]["actor"] == "operation"
    assert told["id"] in history[-1]["cause"]


async def test_what_was_acknowledged_before_is_among_what_it_meets(whole: Bench) -> None:
    """However far behind the read model is: it is waited for before the first page."""
    await done(whole, "hold", filter={"queue": "none"})
    real, gate = whole.deps.read_model, asyncio.Event()
    answer = await whole.http.post("/api/v1/jobs/bulk", json=[{"type": "noop", "queue": "mine"}] * 50)
    ends = {
        number: bounds.end
        for number in range(whole.topics.partitions)
        if (bounds := await whole.log.bounds(whole.topics.jobs, number)).end
    }
    searched: list[dict[int, int]] = []

    class Watched:
        """Says up to where was waited for when it was searched."""

        reached: ClassVar[dict[int, int]] = {}

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        async def wait(self, positions: Mapping[int, Position], timeout_ms: int) -> None:
            await gate.wait()
            await real.wait(positions, timeout_ms)
            self.reached.update({number: position.offset + 1 for number, position in positions.items()})

        async def search(self, query: SearchQuery) -> SearchPage:
            if query.filter.queue == ("mine",):
                searched.append(dict(self.reached))
            return await real.search(query)

    whole.deps.read_model = Watched()
    assert answer.json()["accepted"] == 50
    operation = await begun(whole, "hold", filter={"queue": "mine"})
    gate.set()
    told = await ended(whole, operation)
    assert (told["matched"], told["outcomes"]) == (50, {"applied": 50})
    assert all(searched[0].get(number, 0) >= end for number, end in ends.items())


async def test_older_versions_take_none_whose_filter_they_would_misread(whole: Bench) -> None:
    """They know one type only, and of a filter what was there in their time."""
    await some(whole, 3, batch="b")
    plain, newer = (
        await done(whole, "hold", filter={"queue": "none"}),
        await done(whole, "hold", filter={"batch": "b"}),
    )
    types = [(await whole.job(one["id"]))["type"] for one in (plain, newer)]
    assert types == [OPERATION, NEWER_OPERATION]
    assert newer["outcomes"] == {"applied": 3}
    listed = (await whole.http.get("/api/v1/operations", params={"limit": 1})).json()
    assert (listed["total"], [one["id"] for one in listed["items"]]) == (2, [newer["id"]])
    rest = await whole.http.get("/api/v1/operations", params={"cursor": listed["next_cursor"]})
    assert [one["id"] for one in rest.json()["items"]] == [plain["id"]]
    assert (await done(whole, "cancel", filter={}))["matched"] == 3, "it leaves operations alone"


async def test_by_ids_each_with_its_outcome(whole: Bench) -> None:
    first, second, third = await some(whole, 3)
    await whole.http.post(f"/api/v1/jobs/{second}/cancel")
    told = await done(whole, "hold", ids=[first, second, third, "unknown", first])
    assert told["outcomes"] == {"applied": 2, "illegal": 1, "unknown_job": 1}
    assert told["matched"] == told["total"] == 4
    found = await items(whole, told, limit=2)
    assert {item["job"]: item["outcome"] for item in found} == {
        first: "applied", second: "illegal", third: "applied"
    }  # fmt: skip
    assert [item["job"] for item in found] == sorted([first, second, third])
    [refused] = [item for item in found if item["outcome"] == "illegal"]
    assert "cancelled" in refused["reason"]
    assert await states(whole) == {"held": 2, "cancelled": 1}


async def test_every_action(whole: Bench) -> None:
    await some(whole, 4)
    for action, args, wanted in (
        ("priority", {"priority": "low"}, {"priority": "low"}),
        ("move", {"queue": "other", "pool": "gpu"}, {"queue": "other", "pool": "gpu"}),
        ("hold", {}, {"state": "held"}),
        ("unhold", {}, {"state": "ready"}),
        ("cancel", {}, {"state": "cancelled"}),
        ("retry", {"attempts": 2}, {"state": "ready", "max_attempts": 2}),
        ("delete", {}, None),
    ):
        told = await done(whole, action, filter={"type": "noop"}, args=args)
        assert told["outcomes"] == {"applied": 4}, (action, told)
        jobs = (await whole.http.get("/api/v1/jobs", params={"type": "noop"})).json()["items"]
        if wanted is None:
            assert jobs == []
            continue
        assert len(jobs) == 4
        for job in jobs:
            assert {name: job[name] for name in wanted} == wanted


async def test_requeue_is_for_whatever_waits_or_has_failed(whole: Bench) -> None:
    await some(whole, 2, delay_ms=60_000)
    [dead] = await some(whole, 1)
    await whole.http.post(f"/api/v1/jobs/{dead}/cancel")
    told = await done(whole, "requeue", filter={})
    assert told["outcomes"] == {"applied": 3}
    assert await states(whole) == {"ready": 3}


async def test_a_dry_run_counts_and_changes_nothing(whole: Bench) -> None:
    ids = await some(whole, 6)
    await whole.http.post(f"/api/v1/jobs/{ids[0]}/hold")
    told = await done(whole, "hold", filter={"type": "noop"}, dry_run=True)
    assert (told["dry_run"], told["matched"], told["outcomes"]) == (True, 6, {"applied": 5, "illegal": 1})
    assert await items(whole, told) == []
    assert await states(whole) == {"ready": 5, "held": 1}


async def test_operations_are_listed_and_are_jobs(whole: Bench) -> None:
    first = await done(whole, "hold", filter={"queue": "nothing"})
    second = await done(whole, "cancel", ids=["unknown"])
    page = (await whole.http.get("/api/v1/operations")).json()
    assert [one["id"] for one in page["items"]] == [second["id"], first["id"]]
    assert page["total"] == 2
    assert first["matched"] == 0
    job = await whole.job(first["id"])
    assert (job["type"], job["state"]) == (OPERATION, "succeeded")
    # One that means every job does not mean itself.
    told = await done(whole, "delete", filter={})
    assert told["matched"] == 0
    assert (await whole.http.get("/api/v1/operations")).json()["total"] == 3


async def test_the_same_key_is_one_operation(whole: Bench) -> None:
    await some(whole, 3)
    first = await begin(whole, "hold", "once", filter={})
    again = await begin(whole, "hold", "once", filter={})
    assert first.json()["id"] == again.json()["id"]
    other = await begin(whole, "cancel", "once", filter={})
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_key_reused"


LISTS = ("state", "queue", "pool", "type", "priority", "tags", "tags_any", "worker", "batch", "workflow")
TEXTS = ("unique_key", "concurrency_key", "id_prefix", "error_contains", "payload_contains", "text")
"""What a script has empty when it was filled with nothing: it must not mean all jobs."""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"action": "hold"}, "ids"),
        ({"action": "hold", "ids": ["a"], "filter": {}}, "ids"),
        ({"action": "explode", "filter": {}}, "action"),
        ({"action": "hold", "filter": {"state": "gone"}}, "filter.state"),
        ({"action": "priority", "filter": {}}, "args.priority"),
        ({"action": "priority", "filter": {}, "args": {"priority": "now"}}, "args.priority"),
        ({"action": "move", "filter": {}}, "args.queue"),
        ({"action": "requeue", "filter": {}, "args": {"x": 1}}, "args"),
        ({"action": "hold", "ids": []}, "ids"),
        *(({"action": "hold", "filter": {name: []}}, f"filter.{name}") for name in LISTS),
        *(({"action": "hold", "filter": {name: ""}}, f"filter.{name}") for name in TEXTS),
        ({"action": "hold", "ids": ["no id"]}, "ids[0]"),
    ],
)
async def test_what_cannot_be_asked_is_422(api: Bench, body: dict[str, Any], field: str) -> None:
    answer = await api.http.post("/api/v1/operations", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_unknown_operations_are_404(whole: Bench) -> None:
    job = await whole.enqueue()
    for name in ("unknown", job["id"]):
        for path in (f"/api/v1/operations/{name}", f"/api/v1/operations/{name}/items"):
            assert (await whole.http.get(path)).status_code == 404
        assert (await whole.http.delete(f"/api/v1/operations/{name}")).status_code == 404
    assert (await whole.job(job["id"]))["state"] == "ready"


async def test_one_is_stopped_in_the_middle(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operating, "PAGE_JOBS", 5)
    step, steps, go_on = Operator.step, 0, asyncio.Event()

    async def slowly(self: Operator) -> bool:
        nonlocal steps
        steps += 1
        if steps == 3:
            await go_on.wait()
        return await step(self)

    monkeypatch.setattr(Operator, "step", slowly)
    await some(whole, 40)
    operation = await begun(whole, "hold", filter={"type": "noop"})
    await until(lambda: steps == 3)
    answer = await whole.http.delete(f"/api/v1/operations/{operation['id']}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["cancel_requested"]
    told = await ended(whole, operation)
    assert (told["state"], told["outcomes"]) == ("cancelled", {"applied": 10})
    assert await states(whole) == {"held": 10, "ready": 30}


async def test_what_was_changed_is_left_alone_even_when_the_fold_has_forgotten_the_verb(
    whole: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "ATTEMPT_AFTER_MS", 800)
    monkeypatch.setattr(operating, "VERB_AGE_MS", 300)
    step, steps = Operator.step, 0

    async def failing(self: Operator) -> bool:
        nonlocal steps
        more = await step(self)
        steps += 1
        if steps == 1:
            # The page is done, nobody knows, and the jobs are in the same state again when it is begun anew.
            for job in ids:
                answer = await whole.http.post(f"/api/v1/jobs/{job}/unhold")
                assert answer.status_code == 200
            raise RuntimeError("the process dies")
        return more

    monkeypatch.setattr(Operator, "step", failing)
    ids = await some(whole, 5)
    told = await ended(whole, await begun(whole, "hold", filter={"type": "noop"}))
    assert (told["state"], told["outcomes"], steps) == ("succeeded", {"applied": 5}, 2)
    assert await states(whole) == {"ready": 5}


async def test_one_that_is_begun_again_changes_nothing_twice(
    whole: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operating, "PAGE_JOBS", 7)
    step, steps = Operator.step, 0

    async def failing(self: Operator) -> bool:
        nonlocal steps
        more = await step(self)
        steps += 1
        if steps in (2, 4):
            # The page is done, and nobody will ever know: its checkpoint is not written.
            raise RuntimeError("the process dies")
        return more

    monkeypatch.setattr(Operator, "step", failing)
    monkeypatch.setattr(operating, "ATTEMPT_AFTER_MS", 10)
    ids = await some(whole, 30)
    told = await ended(whole, await begun(whole, "cancel", filter={"type": "noop"}))
    assert (told["state"], told["outcomes"]) == ("succeeded", {"applied": 30})
    assert steps > 5
    for job in ids[:3]:
        history = (await whole.http.get(f"/api/v1/jobs/{job}/history")).json()["items"]
        assert [item["type"] for item in history if item["outcome"] == "applied"] == [
            "Enqueued", "CancelRequested"
        ]  # fmt: skip


async def test_a_job_that_is_only_called_an_operation_is_none_and_stands_in_no_ones_way(whole: Bench) -> None:
    refused = await whole.http.post("/api/v1/jobs", json={"type": OPERATION})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "type")
    real = await done(whole, "cancel", ids=["nobody"])
    clone = await whole.http.post(f"/api/v1/jobs/{real['id']}/clone")
    assert clone.status_code == 422
    for name, payload in (("bare", b"null"), ("odd", b'{"action":"bogus","ids":["x"]}')):
        fields = {"job_type": OPERATION, "queue": OPERATION, "pool": OPERATION, "payload": Raw(payload)}
        line = encode_line(Enqueued(id=f"e-{name}", job=name, max_attempts=3, **fields))
        await whole.log.append(whole.topics.jobs, partition_of(name, whole.topics.partitions), line)
        job = await whole.until(name, "dead")
        assert (job["attempt"], len(job["errors"])) == (1, 1)
        assert (await whole.http.get(f"/api/v1/operations/{name}")).status_code == 404
    listed = await whole.http.get("/api/v1/operations")
    assert (listed.status_code, [one["id"] for one in listed.json()["items"]]) == (200, [real["id"]])
