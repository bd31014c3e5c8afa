"""Fixtures for the whole suite: a real Kafka broker, and a namespace of its own for each test.

Tests that need Kafka ask for `kafka_bootstrap` (shared by the whole run, also across xdist's workers) or for
`private_broker` (one that the test may stop, kill or suspend). With `CI=true` a missing Kafka fails them; elsewhere
they are skipped, and the end of the run says so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.kafka_broker import Broker
from tests.kafka_jars import KafkaUnavailable
from tests.kafka_shared import bootstrap_of_run, end_of_run
from tests.s3_server import BUCKET, s3_server

_RUN_FOLDER = pytest.StashKey[Path]()
_OWNER_PID = pytest.StashKey[int]()
_NO_KAFKA = "no Kafka broker: "


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a folder that its processes share; an xdist worker is told about its controller's."""
    worker_input: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker_input is None:
        config.stash[_RUN_FOLDER] = Path(tempfile.mkdtemp(prefix="penstock-tests-"))
        config.stash[_OWNER_PID] = os.getpid()
    else:
        config.stash[_RUN_FOLDER] = Path(worker_input["penstock_run_folder"])
        config.stash[_OWNER_PID] = int(worker_input["penstock_owner_pid"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist's hook, in the controller: what a new worker is to know."""
    node.workerinput["penstock_run_folder"] = str(node.config.stash[_RUN_FOLDER])
    node.workerinput["penstock_owner_pid"] = node.config.stash[_OWNER_PID]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared broker, in the process that owns the run and only there."""
    folder = config.stash.get(_RUN_FOLDER, None)
    if folder is not None and not hasattr(config, "workerinput"):
        end_of_run(folder)
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a Kafka fixture, so that `-m 'not kafka'` leaves nothing out and nothing in."""
    for item in items:
        if {"kafka_bootstrap", "private_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say aloud that the tests on Kafka did not run."""
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if _NO_KAFKA in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("KAFKA WAS NOT TESTED", sep="!", red=True)
        terminalreporter.line(
            f"{len(skipped)} tests skipped, {str(skipped[0].longrepr[2]).removeprefix('Skipped: ')}"
        )


@pytest.fixture(scope="session")
def _s3_environment() -> Iterator[Mapping[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def s3_url(_s3_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own for each test in the bucket of an S3 server, which the environment names."""
    for name, value in _s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4()}"


@pytest.fixture(scope="session")
def kafka_bootstrap(pytestconfig: pytest.Config) -> str:
    """Address (`host:port`) of a real broker that all tests of this run share; use `unique_namespace` on it."""
    try:
        return bootstrap_of_run(pytestconfig.stash[_RUN_FOLDER], pytestconfig.stash[_OWNER_PID])
    except KafkaUnavailable as error:
        _without_kafka(error)


@pytest.fixture
def private_broker() -> Iterator[Broker]:
    """A started broker of the test's own, which it may stop, kill, suspend and start again."""
    broker = Broker()
    try:
        broker.start()
    except KafkaUnavailable as error:
        _without_kafka(error)
    try:
        yield broker
    finally:
        broker.close()


@pytest.fixture
def unique_namespace() -> str:
    """A fresh namespace, `penstock-<hex>`: topics and groups that no other test has."""
    return f"penstock-{uuid.uuid4().hex[:12]}"


def _without_kafka(error: KafkaUnavailable) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{_NO_KAFKA}{error}", pytrace=False)
    pytest.skip(f"{_NO_KAFKA}{error}")
