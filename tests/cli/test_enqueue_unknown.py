"""What whoever puts a job in is told where nobody can say whether it was taken."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cli.conftest import Run

PROBLEM = {"code": "read_model_unavailable", "detail": "Nobody answers.", "status": 503, "job_id": "the-job"}


class Unsure(BaseHTTPRequestHandler):
    """Takes whatever it is sent, and cannot tell what became of it."""

    taken: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append(body)
        if self.path.endswith("/bulk"):
            ids = [json.loads(line)["id"] for line in body.splitlines()]
            items = [{"index": index, "id": job, "status": "unknown"} for index, job in enumerate(ids)]
            self.answer(200, {"accepted": 0, "rejected": 0, "unknown": len(items), "items": items})
        else:
            self.answer(503, PROBLEM)

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/problem+json" if status >= 400 else "application/json")
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What it was sent."""
    Unsure.taken = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Unsure) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("PENSTOCK_SERVER", f"http://127.0.0.1:{running.server_address[1]}")
        yield Unsure.taken
        running.shutdown()


def test_one_job_is_named_with_the_way_to_send_it_again(run: Run, server: list[bytes]) -> None:
    done = run("enqueue", "greet", "1")
    sent = {json.loads(body)["id"] for body in server}
    assert done.code == 1
    assert len(sent) == 1
    assert "Nobody answers. The job may have been taken all the same" in done.err
    assert f"--id {sent.pop()} it is the same job" in done.err
    done = run("enqueue", "greet", "1", "--idempotency-key", "once")
    assert "--id the-job" in done.err


def test_of_many_it_is_told_apart_from_those_refused(run: Run, server: list[bytes]) -> None:
    done = run("enqueue", "greet", "--bulk", stdin=b"{}\n{}\n")
    assert done.code == 1
    assert "0 accepted, 0 not, of 2 it is not known" in done.out
    assert "of 2 of 2 jobs it is not known whether they were taken" in done.err
