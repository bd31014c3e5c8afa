"""The processes of compose.yaml, with its own commands, environment and health checks, on a real broker and no engine.

Only what an engine provides is put in its place: addresses of services, published ports, volumes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.composed import ROLES, services
from tests.acceptance.processes import ROOT, Stack, http, penstock_json
from tests.waiting import free_port, wait_for


class Substituted:
    """compose.yaml's services on this machine."""

    def __init__(self, bootstrap: str, namespace: str, folder: Path) -> None:
        self.api_port = free_port()
        self._bootstrap = bootstrap
        self._namespace = namespace
        self._folder = folder
        self._health_ports = {name: free_port() for name in ROLES}
        self._projection = f"127.0.0.1:{free_port()}"

    def environment(self, name: str) -> dict[str, str]:
        own: Mapping[str, str] = services()[name]["environment"]
        replaced = {
            "PENSTOCK_LOG": f"kafka://{self._bootstrap}",
            "PENSTOCK_NAMESPACE": self._namespace,
            "PENSTOCK_DATA": str(self._folder / name / "data"),
            "PENSTOCK_HOST": "127.0.0.1",
            "PENSTOCK_PORT": str(self.api_port),
            "PENSTOCK_HEALTH_PORT": str(self._health_ports[name]) if name in ROLES else "",
            "PENSTOCK_PROJECTION_ADDRESS": self._projection,
            "PENSTOCK_SERVER": f"http://127.0.0.1:{self.api_port}",
        }
        return {variable: replaced.get(variable, value) for variable, value in own.items()}

    def is_healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        kind, program, *arguments = services()[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        port = self.api_port if name == "api" else self._health_ports[name]
        own = services()[name]["environment"]["PENSTOCK_PORT" if name == "api" else "PENSTOCK_HEALTH_PORT"]
        asked = [argument.replace(f":{own}/", f":{port}/") for argument in arguments]
        assert asked != arguments
        done = subprocess.run([sys.executable, *asked], capture_output=True, check=False, timeout=20)
        return done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_composed_processes_do_jobs_and_stop_gracefully(
    kafka_bootstrap: str, unique_namespace: str, tmp_path: Path
) -> None:
    # The image's working folder has the examples in it.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    by_hand = Substituted(kafka_bootstrap, unique_namespace, tmp_path)
    server = f"http://127.0.0.1:{by_hand.api_port}"
    with Stack(tmp_path) as stack:
        for name in ROLES:
            # As `depends_on` has it: the API comes when the projection is healthy; nobody else waits.
            for needed in services()[name]["depends_on"]:
                if needed != "kafka":
                    wait_for(
                        f"{needed} is healthy", lambda needed=needed: by_hand.is_healthy(needed), 60, 0.5
                    )
            stack.add(name, services()[name]["command"], by_hand.environment(name)).start()
        for name in ROLES:
            wait_for(f"{name} is healthy", lambda name=name: by_hand.is_healthy(name), 60, 0.5)
        cli = by_hand.environment("cli")
        job = penstock_json("enqueue", "hello", '{"name": "Ada"}', "--wait", folder=tmp_path, environment=cli)
        assert (job["state"], job["result"]) == ("succeeded", "Hello, Ada!")
        many = [{"type": "hello", "payload": {"name": f"number {number}"}} for number in range(500)]
        assert http("POST", f"{server}/api/v1/jobs/bulk", many).json["accepted"] == 500
        wait_for("all are done", lambda: counts(server) == {"succeeded": 501}, 60)
        workers = http("GET", f"{server}/api/v1/workers").json["items"]
        assert [worker["types"] for worker in workers] == [["hello"]]
        for name in reversed(ROLES):
            assert stack[name].stop() == 0, stack[name].tail()
            assert "Traceback" not in stack[name].output.read_text()


def counts(server: str) -> dict[str, Any]:
    return http("GET", f"{server}/api/v1/counts").json["states"]
