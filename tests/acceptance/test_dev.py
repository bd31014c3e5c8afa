"""`penstock dev` from outside: work done on the embedded log, killed, restarted, its folders thrown away."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.ledger import ledger_of
from tests.acceptance.processes import TASKS, Role, Stack, http, penstock, penstock_json
from tests.waiting import free_port, wait_for

TERMINAL = {"succeeded", "dead", "cancelled", "expired"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path) as found:
        yield found


def add_dev(stack: Stack, *arguments: str) -> tuple[Role, str]:
    """A `penstock dev` in the stack's folder, not started, and its address."""
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    command = ("dev", "--data", "data", "--port", str(port), "--app", str(TASKS), *arguments)
    ledger = {"ACCEPTANCE_LEDGER": str(stack.folder / "ledger")}
    return stack.add("dev", command, ledger, f"{server}/readyz"), server


def counts(server: str) -> dict[str, int]:
    return http("GET", f"{server}/api/v1/counts").json["states"]


def settled(server: str) -> dict[str, int] | None:
    """Counts by state, once every job has ended."""
    states = counts(server)
    return states if states and not states.keys() - TERMINAL else None


def digests(server: str) -> dict[int, tuple[int, str]]:
    """Next offset and state digest by partition."""
    partitions = http("GET", f"{server}/readyz").json["partitions"]
    return {entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in partitions}


def test_a_job_is_enqueued_and_done(stack: Stack) -> None:
    role, server = add_dev(stack)
    role.start().wait_ready()
    job = penstock_json(
        "enqueue", "add", '{"a": 2, "b": 40}', "--wait", "--server", server, folder=stack.folder
    )
    assert (job["state"], job["result"], job["attempt"]) == ("succeeded", 42, 1)
    history = penstock_json("jobs", "history", job["id"], "--server", server, folder=stack.folder)
    assert [item["type"] for item in history] == ["Enqueued", "Leased", "Succeeded"]
    assert role.stop() == 0
    assert "Traceback" not in role.output.read_text()


@pytest.mark.slow
def test_killed_in_mid_load_it_loses_nothing_and_does_nothing_twice(stack: Stack) -> None:
    role, server = add_dev(stack)
    role.start().wait_ready()
    accepted: list[str] = []
    for life in range(3):
        batch = [
            {"type": "add", "payload": {"a": number, "b": life}, "id": f"job-{life}-{number}"}
            for number in range(400)
        ]
        batch += [
            {"type": "nap", "payload": {"seconds": 0.3}, "id": f"nap-{life}-{number}"} for number in range(20)
        ]
        answer = http("POST", f"{server}/api/v1/jobs/bulk", batch)
        assert answer.status == 200, answer.body
        accepted += [item["id"] for item in answer.json["items"] if item["status"] == "accepted"]
        enough = 100 * (life + 1)
        wait_for("some of it is done", lambda enough=enough: counts(server).get("succeeded", 0) > enough)
        role.kill()
        role.start().wait_ready()
    states = wait_for("all jobs have ended", lambda: settled(server), 60)
    assert len(accepted) == 3 * 420
    assert states == {"succeeded": len(accepted)}
    assert role.stop() == 0
    verified = penstock_json("verify", "--data", "data", folder=stack.folder)
    assert verified["ok"]
    assert sum(partition["compared"] for partition in verified["partitions"]) >= 4
    ledger = ledger_of(stack.folder, "--data", "data")
    assert ledger.begun == ledger.succeeded == Counter(accepted)


def test_the_read_model_can_be_thrown_away(stack: Stack) -> None:
    role, server = add_dev(stack)
    role.start().wait_ready()
    jobs = [{"type": "add", "payload": {"a": number, "b": 1}} for number in range(200)]
    jobs += [
        {"type": "add", "payload": {"a": "no number"}, "max_attempts": 1},
        {"type": "nobody-handles-this"},
    ]
    assert http("POST", f"{server}/api/v1/jobs/bulk", jobs).json["accepted"] == 202
    wait_for("all but one have ended", lambda: counts(server) == {"succeeded": 200, "dead": 1, "ready": 1})
    role.stop()
    before = penstock_json("verify", "--data", "data", folder=stack.folder)
    shutil.rmtree(stack.folder / "data" / "node")
    role.start().wait_ready()
    wait_for("counted again", lambda: counts(server) == {"succeeded": 200, "dead": 1, "ready": 1})
    role.stop()
    after = penstock_json("verify", "--data", "data", folder=stack.folder)
    assert before["ok"]
    assert after["ok"]


def test_a_rebuilt_read_model_has_the_same_digests(stack: Stack) -> None:
    role, server = add_dev(stack)
    role.start().wait_ready()
    jobs = [{"type": "add", "payload": {"a": number, "b": 1}} for number in range(300)]
    http("POST", f"{server}/api/v1/jobs/bulk", jobs)
    wait_for("all have ended", lambda: counts(server) == {"succeeded": 300})
    live = digests(server)
    role.stop()
    rebuilt = penstock_json("projection", "rebuild", "--data", "data", "--into", "new", folder=stack.folder)
    found = {entry["partition"]: (entry["next_offset"], entry["digest"]) for entry in rebuilt["partitions"]}
    assert found == live


@pytest.mark.parametrize(
    "arguments",
    [
        ("dev", "--port", "banana"),
        ("dev", "--port", "70000"),
        ("dev", "--no-such-flag"),
        ("dev", "--app", "there_is_no_such_module"),
        ("dev", "--temp", "--data", "somewhere"),
        ("--config", "missing.toml", "dev"),
        ("worker",),
        ("api",),
        ("orchestrator",),
        ("enqueue", "hello", "{not json", "--server", "http://127.0.0.1:9"),
        ("jobs", "get", "x", "--server", "http://127.0.0.1:9"),
        ("verify", "--data", "there-is-none", "--log", "embedded:there-is-none"),
        ("audit", "verify", "missing.ndjson"),
        ("log", "inspect", "not-a-position"),
    ],
    ids=" ".join,
)
def test_wrong_input_is_told_in_one_line_and_never_with_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = penstock(*arguments, folder=tmp_path)
    assert done.returncode not in (0, 70), done.stdout
    assert done.stderr.strip()
    assert "Traceback" not in done.stdout + done.stderr


def test_a_second_dev_on_the_same_folder_is_refused(stack: Stack) -> None:
    role, _ = add_dev(stack)
    role.start().wait_ready()
    done = penstock("dev", "--data", "data", "--port", str(free_port()), folder=stack.folder)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert role.running
