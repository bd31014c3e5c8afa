"""`penstock dev` as a process, and every command that asks it or reads its log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.client.http import Client
from penstock.client.idgen import new_id
from tests.cli.conftest import Dev, Run
from tests.waiting import wait_for


class TestJobs:
    def test_a_job_is_done_and_shown(self, ask: Run):
        done = ask(
            "enqueue", "greet", '{"name": "you"}', "--wait", "--tag", "a", "--tag", "b", "--output", "json"
        )
        assert done.code == 0
        job = done.json
        assert (job["state"], job["result"], job["tags"]) == ("succeeded", "hello you", ["a", "b"])
        shown = ask("jobs", "get", job["id"])
        assert "hello you" in shown.out
        assert "succeeded" in shown.out
        history = ask("jobs", "history", job["id"])
        assert [word for word in ("Enqueued", "Leased", "Succeeded") if word in history.out] == [
            "Enqueued", "Leased", "Succeeded",
        ]  # fmt: skip
        items = ask("--output", "json", "jobs", "history", job["id"]).json
        assert [item["type"] for item in items] == ["Enqueued", "Leased", "Succeeded"]

    def test_the_payload_may_come_from_stdin(self, ask: Run):
        done = ask("enqueue", "greet", "-", "--wait", "--output", "json", stdin=b'{"name": "stdin"}')
        assert done.json["result"] == "hello stdin"

    def test_a_job_that_fails_fails_the_command(self, ask: Run):
        done = ask("enqueue", "broken", "--max-attempts", "1", "--wait")
        assert done.code == 1
        assert "is dead" in done.err
        assert "no luck" in done.out

    def test_a_job_that_goes_on_is_not_waited_for_for_ever(self, ask: Run):
        done = ask("enqueue", "nobody-runs-this", "--wait", "--wait-timeout-ms", "50")
        assert done.code == 1
        assert "is ready" in done.err
        counts = ask("counts").out
        assert "no worker of pool default handles nobody-runs-this" in counts

    def test_options_arrive(self, ask: Run):
        job_id = new_id()
        ask(
            "enqueue", "greet", '{"name":"x"}', "--id", job_id, "--queue", "q1", "--priority", "high", "--delay-ms",
            "3600000", "--max-attempts", "7", "--timeout-ms", "99", "--expires-at", "2099-01-01T00:00:00Z",
            "--metadata", '{"by":"me"}', "--backoff", '{"kind":"fixed","base_ms":1}',
        )  # fmt: skip
        job = ask("jobs", "get", job_id, "--output", "json").json
        wanted = {
            "queue": "q1", "priority": "high", "state": "scheduled", "max_attempts": 7, "timeout_ms": 99,
            "expires_at": "2099-01-01T00:00:00.000Z", "metadata": {"by": "me"},
        }  # fmt: skip
        assert {name: job[name] for name in wanted} == wanted
        [enqueued] = ask("jobs", "history", job_id, "--output", "json").json
        assert (enqueued["backoff"]["kind"], enqueued["backoff"]["base_ms"]) == ("fixed", 1)
        refused = ask("enqueue", "greet", "--metadata", "{")
        assert (refused.code, "--metadata is not JSON" in refused.err) == (2, True)

    def test_the_same_id_with_another_body_is_refused(self, ask: Run):
        job_id = new_id()
        assert ask("enqueue", "greet", '{"name":"a"}', "--id", job_id).code == 0
        assert ask("enqueue", "greet", '{"name":"a"}', "--id", job_id).code == 0
        refused = ask("enqueue", "greet", '{"name":"b"}', "--id", job_id)
        assert (refused.code, "penstock: " in refused.err) == (5, True)

    @pytest.mark.parametrize("value", ["urgent", "HIGH"])
    def test_a_bad_value_names_its_field(self, ask: Run, value: str):
        refused = ask("enqueue", "greet", "--priority", value)
        assert (refused.code, "priority: " in refused.err) == (2, True)
        assert "allowed are critical, high, normal, low" in refused.err

    def test_many_from_stdin(self, ask: Run):
        lines = b'{"payload":{"name":"a"}}\n\n{"type":"greet","payload":{"name":"b"},"queue":"other"}\n'
        done = ask("enqueue", "greet", "--bulk", "--queue", "bulk", "--output", "json", stdin=lines)
        assert (done.code, done.json["accepted"]) == (0, 2)
        queues = [
            ask("jobs", "get", item["id"], "--output", "json").json["queue"] for item in done.json["items"]
        ]
        assert queues == ["bulk", "other"]

    def test_of_many_the_bad_ones_are_told(self, ask: Run):
        done = ask("enqueue", "--bulk", stdin=b'{"type":"greet"}\n{"type":"a b"}\n')
        assert done.code == 1
        assert "1 accepted, 1 not" in done.out
        assert "type" in done.out

    def test_lines_that_are_no_jobs_keep_no_other_from_its_way(self, ask: Run):
        done = ask("enqueue", "--bulk", stdin=b'[1]\n{"type":"greet"}\n{"typ":3}\n{"type":"greet"}\n')
        assert (done.code, "2 accepted, 2 not" in done.out) == (1, True)
        assert "line 1, no id: rejected: not a JSON object" in done.out
        assert "line 3, no id: rejected: unknown option 'typ'" in done.out
        assert "2 of 4 jobs were not accepted" in done.err

    def test_lists_have_filters_and_pages(self, ask: Run):
        for number in range(3):
            ask("enqueue", "nobody-pages", str(number))
        page = ask("jobs", "list", "--type", "nobody-pages", "--limit", "2", "--output", "json").json
        assert (len(page["items"]), page["total"]) == (2, 3)
        rest = ask("jobs", "list", "--type", "nobody-pages", "--limit", "2", "--cursor", page["next_cursor"])
        assert "1 of 3" in rest.out
        assert "no jobs" in ask("jobs", "list", "--state", "expired").out
        assert ask("jobs", "list", "--state", "odd").code == 2

    def test_unknown_jobs(self, ask: Run):
        for command in ("get", "history"):
            missing = ask("jobs", command, "nope")
            assert (missing.code, "nope" in missing.err) == (4, True)

    @pytest.mark.parametrize("command", ["queues", "counts", "workers"])
    def test_tables_and_json(self, ask: Run, command: str):
        ask("enqueue", "greet", '{"name":"x"}', "--wait")
        assert ask(command).out.strip()
        assert isinstance(ask(command, "--output", "json").json, dict)


class TestLog:
    def test_tail_and_inspect_through_the_server(self, ask: Run):
        job_id = new_id()
        ask("enqueue", "greet", '{"name":"x"}', "--id", job_id, "--wait")
        lines = [
            json.loads(line)
            for line in ask("log", "tail", "--job", job_id, "--output", "json").out.splitlines()
        ]
        assert [line["event"]["type"] for line in lines] == ["Enqueued", "Leased", "Succeeded"]
        assert job_id in ask("log", "tail", "-n", "3").out
        shown = ask("log", "inspect", lines[0]["position"], "--output", "json").json
        assert (shown["type"], shown["job"], shown["outcome"]) == ("Enqueued", job_id, "applied")
        record, _, _ = lines[0]["position"].rpartition(":")
        assert isinstance(ask("log", "inspect", record, "--output", "json").json, list)
        assert ask("log", "inspect", "0:999999:0").code == 4
        assert ask("log", "tail", "--partition", "99").code == 4

    def test_tail_follows(self, dev: Dev, ask: Run):
        job_id = new_id()
        with subprocess.Popen(
            [
                sys.executable, "-m", "penstock.cli.main", "--server", dev.server, "log", "tail", "-n", "1", "--follow",
            ],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            ask("enqueue", "nobody-follows", "--id", job_id)
            for line in process.stdout:
                if job_id in line:
                    break
            process.send_signal(signal.SIGINT)
            assert process.wait(20) != 0

    def test_a_corrected_line_is_put_back(self, dev: Dev, ask: Run, tmp_path: Path):
        job_id = new_id()
        line = json.dumps(
            {"type": "Enqueued", "job": job_id, "job_type": "greet", "payload": {"name": "back"}}
        )
        (tmp_path / "line.json").write_text(line)
        done = ask("quarantine", "redrive", "0:0:0", "--edit", "line.json")
        assert (done.code, "stands at" in done.out) == (0, True)
        with Client(dev.server) as client:
            wait_for("it is done", lambda: "hello back" in json.dumps(_job_or_none(client, job_id)) or None)
        again = ask("quarantine", "redrive", "0:0:0")
        assert (again.code, "by hand" in again.err) == (2, True)
        assert "nothing in quarantine" in ask("quarantine", "list").out
        assert ask("quarantine", "list", "--output", "json").json["items"] == []

    def test_the_log_verifies_while_it_is_written(self, ask: Run):
        ask("enqueue", "greet", '{"name":"x"}', "--wait")
        found = ask("verify", "--output", "json")
        assert (found.code, found.json["ok"]) == (0, True)
        assert all(proof["compared"] >= 1 for proof in found.json["partitions"])
        assert "OK" in ask("verify").out

    def test_the_audit_export_verifies(self, dev: Dev, ask: Run, tmp_path: Path):
        ask("enqueue", "greet", '{"name":"x"}', "--wait")
        assert ask("audit", "export", "-o", "log.ndjson").code == 0
        assert ask("audit", "verify", "log.ndjson").code == 0
        for nowhere in (("verify", "none.ndjson"), ("export", "--file", "none/log.ndjson")):
            assert ask("audit", *nowhere).code == 4
        data = (tmp_path / "log.ndjson").read_bytes()
        piped = ask("audit", "verify", "-", "--output", "json", stdin=data)
        assert (piped.code, piped.json["ok"]) == (0, True)
        (tmp_path / "log.ndjson").write_bytes(data.replace(b"hello x", b"hello y", 1))
        changed = ask("audit", "verify", "log.ndjson")
        assert (changed.code, "log.ndjson, line" in changed.err) == (7, True)
        (tmp_path / "log.ndjson").write_bytes(b"\n".join(data.splitlines()[:-1]))
        assert ask("audit", "verify", "log.ndjson").code == 7

    def test_exports_have_ranges(self, ask: Run):
        job_id = new_id()
        ask("enqueue", "greet", '{"name":"x"}', "--id", job_id, "--wait")
        of_job = ask("audit", "export", "--job", job_id).out
        assert job_id in of_job
        assert len(json.loads(of_job.splitlines()[0])["ranges"]) == 1
        assert ask("audit", "verify", "-", stdin=of_job.encode()).code == 0
        future = ask("audit", "export", "--since", "2099-01-01T00:00:00Z")
        assert json.loads(future.out.splitlines()[-1])["lines"] == 0
        past = ask("audit", "export", "--until", "2001-01-01T00:00:00Z")
        assert json.loads(past.out.splitlines()[-1])["lines"] == 0
        assert ask("audit", "export", "--partition", "99").code == 2

    def test_a_log_in_use_is_asked_for_and_not_opened(
        self, run: Run, dev: Dev, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("PENSTOCK_SERVER", dev.server)
        assert run("log", "tail", "-n", "1", "--data", dev.data).code == 0
        for command in (("projection", "rebuild"), ("log", "tail"), ("verify",)):
            refused = run(*command, "--log", f"embedded:{dev.data}")
            assert (refused.code, "in use" in refused.err) == (3, True)


def _job_or_none(client: Client, job_id: str) -> Any:
    response = httpx.get(f"{client.server}/api/v1/jobs/{job_id}")
    return response.json() if response.status_code == 200 else None


class TestProcess:
    def test_a_life_from_start_to_rebuilt(self, run: Run, tmp_path: Path):
        dev = Dev(tmp_path, "--app", "handlers.py")
        try:
            assert f"{dev.server}/docs" in dev.greeting
            assert "broken, greet, linger" in dev.greeting
            with Client(dev.server) as client:
                client.enqueue("linger", id="held")
                wait_for("it runs", lambda: client.get("held")["state"] == "active" or None)
                second = run("dev", "--data", dev.data, "--port", "0")
                assert (second.code, "in use by another process" in second.err) == (3, True)
                port = run("dev", "--temp", "--port", dev.server.rpartition(":")[2])
                assert (port.code, "cannot listen" in port.err) == (2, True)
        finally:
            code, err = dev.stop()
        assert code == 0
        assert "Traceback" not in err

        # What was running was given back in good order; nothing else is open now.
        history = run("log", "tail", "--job", "held", "--data", dev.data, "--output", "json")
        types = [json.loads(line)["event"]["type"] for line in history.out.splitlines()]
        assert types == ["Enqueued", "Leased", "Returned"]
        shown = run("log", "inspect", json.loads(history.out.splitlines()[0])["position"], "--data", dev.data)
        assert "sha256" in shown.out

        verified = run("verify", "--data", dev.data, "--output", "json")
        assert (verified.code, verified.json["ok"]) == (0, True)
        assert {proof["compared"] for proof in verified.json["partitions"]} == {1}
        digests = [proof["state_digest"] for proof in verified.json["partitions"]]
        into = run("projection", "rebuild", "--data", dev.data, "--into", "rebuilt", "--output", "json")
        assert [part["digest"] for part in into.json["partitions"]] == digests
        assert run("projection", "rebuild", "--data", dev.data, "--into", "rebuilt").code == 5
        assert run("projection", "rebuild", "--data", dev.data).code == 0
        assert run("verify", "--data", dev.data).code == 0
        assert run("audit", "export", "--data", dev.data, "-o", "a.ndjson").code == 0
        assert run("audit", "verify", "a.ndjson").code == 0
        redriven = run(
            "quarantine",
            "redrive",
            "0:0:0",
            "--edit",
            "-",
            "--data",
            dev.data,
            stdin=b'{"type":"Enqueued","job":"late","job_type":"greet"}',
        )
        assert redriven.code == 0

    def test_it_takes_up_its_work_again_after_a_kill(self, tmp_path: Path):
        dev = Dev(tmp_path)
        try:
            with Client(dev.server) as client:
                client.enqueue("greet", {"name": "later"}, id="a")
        finally:
            assert dev.stop(signal.SIGKILL)[0] == -signal.SIGKILL
        dev = Dev(tmp_path, "--app", "handlers")
        try:
            with Client(dev.server) as client:
                assert client.wait("a", 20_000)["result"] == "hello later"
        finally:
            assert dev.stop(signal.SIGTERM)[0] == 0

    def test_a_worker_over_http(self, tmp_path: Path):
        dev = Dev(tmp_path)
        worker = subprocess.Popen(
            [
                sys.executable, "-m", "penstock.cli.main", "worker", "--app", "handlers", "--server", dev.server,
                "--name", "remote", "--concurrency", "2",
            ],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            with Client(dev.server) as client:
                client.enqueue("greet", {"name": "http"}, id="a")
                assert client.wait("a", 20_000)["worker"] == "remote"
        finally:
            worker.send_signal(signal.SIGINT)
            out, err = worker.communicate(timeout=40)
            dev.stop()
        assert worker.returncode == 0, err
        assert "worker remote runs broken, greet, linger" in out
