"""The pages under docs/ say what the code does: what can be compared, is."""

from __future__ import annotations

import re
import runpy

import pytest

import penstock
from penstock.api import cloning, events_ws, verbs
from penstock.api.app import OPERATIONS
from penstock.cli.settings import ENV_PREFIX, Settings
from penstock.client.calls import error_classes
from penstock.client.http import Client
from penstock.client.requests import JobRequest
from penstock.core.rules import RULES, newest
from penstock.log.namespace import topic_specs
from penstock.projections.port import JobView
from penstock.schemas.topics import Topics
from tests.acceptance.processes import ROOT, understood

DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text_of(page), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no section {heading}"
    return found[1]


def first_cells(table: str) -> set[str]:
    """Everything in code style in the first column."""
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_page_of_events_is_fresh() -> None:
    written = runpy.run_path(str(DOCS / "make_events.py"))["page"]()
    assert text_of("events.md") == written, "run python docs/make_events.py"


def test_every_setting_is_described() -> None:
    named = {
        name.removeprefix(ENV_PREFIX).lower() for name in first_cells(section("operations.md", "Settings"))
    }
    assert named == set(Settings.model_fields)


def test_every_topic_is_described() -> None:
    table = section("operations.md", "Topics")
    suffixes = {spec.name.removeprefix("ns.") for spec in topic_specs(Topics("ns"))}
    named = {name.removeprefix("<ns>").lstrip(".") for name in first_cells(table)}
    assert {name if name in suffixes else f"work.{name}" for name in named} == suffixes


def test_every_metric_exists() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "penstock").rglob("*.py"))
    for name in re.findall(r"`(penstock_[a-z_]+)[`{]", section("operations.md", "Metrics")):
        assert re.search(rf"['\"]{name.removesuffix('_total')}\b", source), name


def test_every_operation_is_listed() -> None:
    listed = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", section("http-api.md", "Operations")))
    known = {f"{operation.method} {operation.path}" for operation in OPERATIONS}
    assert listed == known | {f"GET {events_ws.PATH}"}


def test_every_field_of_a_request_is_described() -> None:
    assert first_cells(section("http-api.md", "Putting a job in")) == set(JobRequest.__struct_fields__)


def test_every_verb_is_described() -> None:
    asked = {operation.path.rpartition("/")[2] for operation in (*verbs.OPERATIONS, cloning.CLONE)}
    described = first_cells(section("http-api.md", "Changing a job"))
    assert described == (asked - {"{id}"}) | {"DELETE"}


CAPABILITIES = [
    [cell.strip() for cell in line.strip("| \n").split("|")]
    for line in text_of("capabilities.md").partition("## In handlers")[0].splitlines()
    if line.startswith("| ")
][2:]


@pytest.mark.parametrize("row", CAPABILITIES, ids=lambda row: row[0])
def test_each_capability_is_where_it_is_said_to_be(row: list[str]) -> None:
    _, http, command, client, line, shown = (cell.strip("`") for cell in row)
    method, _, path = http.partition(" ")
    known = {(operation.method, operation.path) for operation in OPERATIONS} | {("GET", events_ws.PATH)}
    assert (method, f"/api/v1{path}") in known
    assert command == "-" or understood(command.partition(" --")[0].split())
    assert client == "-" or callable(getattr(Client, client))
    assert line == "-" or line in RULES[newest(RULES)].in_force
    assert is_test(shown)


def is_test(shown: str) -> bool:
    """Whether there is this file of tests, and this test in it."""
    file, _, name = shown.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    return not name or re.search(rf"def {name}\(", source) is not None


def test_what_handlers_can_do_is_where_it_is_said_to_be() -> None:
    table = section("capabilities.md", "In handlers")
    rows = re.findall(r"^\| ([^|]+) \| `([\w.]+)` \| `([^`]+)` \|$", table, re.MULTILINE)
    assert len(rows) >= 9
    for _, name, shown in rows:
        first, _, member = name.partition(".")
        found = getattr(penstock, first)
        assert not member or hasattr(found, member), name
        assert is_test(shown), shown


def test_every_verb_is_a_capability() -> None:
    paths = {row[1].strip("`").partition(" ")[2] for row in CAPABILITIES}
    assert {
        operation.path.removeprefix("/api/v1") for operation in (*verbs.OPERATIONS, cloning.CLONE)
    } <= paths


def test_the_fields_of_a_job_are_those_of_the_answer() -> None:
    fields = section("http-api.md", "A job").split("`")[1]
    assert re.sub(r"[\[{][^ ]*", "", fields).split() == list(JobView.__struct_fields__)


def test_error_codes_and_statuses_are_the_tree_s() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", section("http-api.md", "Errors"), re.MULTILINE)
    known = error_classes()
    listed: set[str] = set()
    for status, cell in rows:
        for code in re.findall(r"`(\w+)`", cell):
            assert known[code].status == int(status), code
            listed.add(code)
    # What an operation of the API promises to answer with, but for those that are no error of a request.
    promised = {str(status) for operation in OPERATIONS for status in operation.problems}
    assert promised <= {status for status, _ in rows}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "operations.md", "http-api.md", "events.md"])
def test_pages_speak_of_modules_and_files_that_exist(page: str) -> None:
    for name in re.findall(r"`((?:penstock|docs|tests)/[\w/.]+)`", text_of(page)):
        assert (ROOT / name).exists() or list(ROOT.glob(name)), name
