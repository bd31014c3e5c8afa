"""Outcomes over the worker protocol that are neither success nor failure."""

from __future__ import annotations

from penstock.core.rules import RULES, newest
from tests.api.harness import Bench


async def test_a_job_is_put_off_done_in_part_and_given_up(whole: Bench) -> None:
    job = await whole.enqueue()
    [given] = await whole.fetch()
    assert given["rules"] == newest(RULES)
    about = {"job": job["id"], "lease": given["lease"]}
    [item] = await whole.report({"type": "Snoozed", "delay_ms": 30, "reason": "not yet", **about})
    assert item["outcome"] == "applied"
    [again] = await whole.fetch()
    assert (again["id"], again["attempt"]) == (job["id"], 1)
    errors = [{"code": "bad_row", "message": "row 3", "details": {"row": 3}}, {"code": "odd"}]
    about["lease"] = again["lease"]
    [item] = await whole.report({"type": "Succeeded", "result": 2, "errors": errors, **about})
    assert item["outcome"] == "applied"
    found = await whole.job(job["id"])
    assert (found["state"], found["result"]) == ("partial", 2)
    assert [(error["code"], error["message"], error["details"]) for error in found["errors"]] == [
        ("bad_row", "row 3", {"row": 3}),
        ("odd", "", None),
    ]
    other = await whole.enqueue()
    [given] = await whole.fetch()
    back = {"type": "Returned", "job": other["id"], "lease": given["lease"], "cancel": True}
    assert (await whole.report(back))[0]["outcome"] == "applied"
    assert (await whole.job(other["id"]))["state"] == "cancelled"
