"""The roles as processes of their own on a cluster, and the commands that read its log directly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from penstock.client.http import Client
from penstock.client.idgen import new_id
from tests.cli.conftest import APP, Run, environment
from tests.waiting import free_port, wait_for


class Roles:
    """One process of each role."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        (folder / "handlers.py").write_text(APP)
        self.folder = folder
        self.settings = {
            "PENSTOCK_LOG": f"kafka://{bootstrap}", "PENSTOCK_NAMESPACE": f"cli-{new_id()}", "PENSTOCK_PARTITIONS": "3",
            "PENSTOCK_WORK_PARTITIONS": "3", "PENSTOCK_DATA": str(folder / "data"), "PENSTOCK_GRACE_MS": "200",
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.health: dict[str, int] = {}
        self.server = ""

    def start(self, role: str, *arguments: str) -> str:
        """Start a role; returns what it says first."""
        if role != "api":
            self.health[role] = free_port()
            arguments = (*arguments, "--health-port", str(self.health[role]))
        with self.errors(role).open("ab") as errors:
            process = self.processes[role] = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli.main", role, *arguments],
                cwd=self.folder, env=environment(**self.settings), stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, self.errors(role).read_text()
        return said

    def errors(self, role: str) -> Path:
        """What the role says on stderr: a file, for a full pipe that nobody reads would stop it."""
        return self.folder / f"{role}.txt"

    def start_all(self) -> None:
        """The orchestrator first: it makes the topics."""
        self.start("orchestrator", "--name", "o1")
        self.start("projection")
        self.server = self.start("api", "--port", "0").split()[-1]
        self.start("worker", "--app", "handlers", "--name", "w1")

    def stop(self) -> dict[str, tuple[int, str]]:
        """Exit code and stderr of each."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        found: dict[str, tuple[int, str]] = {}
        for role, process in self.processes.items():
            process.communicate(timeout=40)
            found[role] = process.returncode, self.errors(role).read_text()
        return found


@pytest.fixture
def roles(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Roles]:
    found = Roles(kafka_bootstrap, tmp_path)
    try:
        yield found
    finally:
        for process in found.processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def test_roles_alone_do_a_job_and_its_log_is_read(roles: Roles, run: Run, monkeypatch: pytest.MonkeyPatch):
    roles.start_all()
    for name, value in roles.settings.items():
        monkeypatch.setenv(name, value)
    with Client(roles.server) as client:
        client.enqueue("greet", {"name": "kafka"}, id="a")
        job = client.wait("a", 30_000)
        assert (job["result"], job["worker"]) == ("hello kafka", "w1")
        assert [item["type"] for item in client.history("a")] == ["Enqueued", "Leased", "Succeeded"]

    for role, port in roles.health.items():
        ready = wait_for(f"{role} is ready", lambda port=port: _ready(port))
        assert ready.json()["role"] == role
        assert "penstock_" in httpx.get(f"http://127.0.0.1:{port}/metrics").text

    lines = [
        json.loads(line) for line in run("log", "tail", "--job", "a", "--output", "json").out.splitlines()
    ]
    assert [line["event"]["type"] for line in lines] == ["Enqueued", "Leased", "Succeeded"]
    assert run("log", "inspect", lines[0]["position"]).code == 0
    # The roles hold their folders: from the log alone two folds are compared, through the server the read model too.
    direct = run("verify", "--output", "json")
    assert (direct.code, direct.json["ok"]) == (0, True)
    served = run("verify", "--server", roles.server, "--output", "json")
    assert (served.code, served.json["ok"]) == (0, True)
    assert any(proof["compared"] for proof in served.json["partitions"])
    digests = {proof["partition"]: proof["state_digest"] for proof in direct.json["partitions"]}
    rebuilt = run("projection", "rebuild", "--into", "rebuilt", "--output", "json")
    assert {part["partition"]: part["digest"] for part in rebuilt.json["partitions"]} == digests
    # Rebuilt beside the one that is served, which its process goes on with until it starts again.
    beside = run("projection", "rebuild", "--output", "json")
    assert {part["swapped"] for part in beside.json["partitions"]} == {"at_next_start"}
    assert {part["partition"]: part["digest"] for part in beside.json["partitions"]} == digests

    for role, (code, err) in roles.stop().items():
        assert (code, "Traceback" in err) == (0, False), (role, err)
    stopped = run("verify", "--output", "json")
    assert (stopped.code, stopped.json["ok"]) == (0, True)
    assert all(proof["compared"] for proof in stopped.json["partitions"])


def test_a_cluster_that_is_not_there_is_a_message(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_LOG", "kafka://127.0.0.1:9")
    result = run("log", "tail")
    assert (result.code, "Traceback" in result.err) == (6, False)
    assert result.err.startswith("penstock: ")


def test_another_number_of_partitions_is_refused(roles: Roles, run: Run, monkeypatch: pytest.MonkeyPatch):
    roles.start("orchestrator")
    for name, value in {**roles.settings, "PENSTOCK_PARTITIONS": "4"}.items():
        monkeypatch.setenv(name, value)
    result = run("log", "tail")
    assert (result.code, "partitions" in result.err) == (2, True)
    roles.stop()


def _ready(port: int) -> httpx.Response | None:
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz")
    return answer if answer.status_code == 200 else None
