"""An S3 server for tests: moto's, in a process of its own, with one bucket.

It keeps everything in memory, but it speaks the protocol over HTTP, so that what is tested is the real client with its
signatures, uploads in parts, conditions and errors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from tests.waiting import free_port, wait_for

BUCKET = "bucket"
START_TIMEOUT_S = 60.0


@contextmanager
def s3_server() -> Iterator[Mapping[str, str]]:
    """Run one; yields the environment in which ``s3://bucket/...`` is in it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(process, url)
        yield s3_environment(url)
    finally:
        process.kill()
        process.wait()


def s3_environment(url: str) -> Mapping[str, str]:
    """In which ``s3://`` is the server at ``url``."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }


def _make_bucket(process: subprocess.Popen[bytes], url: str) -> None:
    def made() -> bool:
        try:
            return httpx.put(f"{url}/{BUCKET}").raise_for_status().is_success
        except httpx.TransportError as error:
            if process.poll() is not None:
                raise RuntimeError("the S3 server did not start") from error
            return False

    wait_for("the S3 server takes a bucket", made, START_TIMEOUT_S)
