"""The OpenAPI document says what the service does: every route, and answers that fit their schemas."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.routing import Route

from penstock.api.app import OPERATIONS, create_app
from penstock.api.models import ListQuery
from tests.api.harness import Bench


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def check(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "$") -> None:
    """As much of JSON Schema as the document uses."""
    schema = resolve(document, schema)
    if "anyOf" in schema:
        failures: list[str] = []
        for choice in schema["anyOf"]:
            try:
                check(document, choice, value, where)
            except AssertionError as error:
                failures.append(str(error))
            else:
                return
        raise AssertionError(f"{where}: {failures}")
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    kind = schema.get("type")
    if kind == "boolean":
        assert isinstance(value, bool), where
    elif kind:
        assert isinstance(value, kinds[kind]), f"{where}: {value!r} is no {kind}"
        assert not (isinstance(value, bool)), where
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r}"
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{where}: {value!r}"
    if kind == "object" and "properties" in schema:
        assert set(schema.get("required", ())) <= set(value), f"{where}: {sorted(value)}"
        for name, inner in value.items():
            if name in schema["properties"]:
                check(document, schema["properties"][name], inner, f"{where}.{name}")
    if kind == "array":
        for number, item in enumerate(value):
            check(document, schema.get("items", {}), item, f"{where}[{number}]")


@pytest.fixture
async def document(api: Bench) -> dict[str, Any]:
    answer = await api.http.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_every_route_is_described_and_nothing_else(api: Bench, document: dict[str, Any]) -> None:
    served = {
        (method.lower(), route.path)
        for route in create_app(api.deps).routes
        if isinstance(route, Route) and not route.path.startswith(("/docs", "/openapi"))
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(method, path) for path, item in document["paths"].items() for method in item}
    assert described == served
    assert len(described) == len(OPERATIONS)
    ids = [item["operationId"] for methods in document["paths"].values() for item in methods.values()]
    assert len(set(ids)) == len(ids)


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                resolve(document, node)
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document)
    assert document["openapi"].startswith("3.1")


async def test_parameters_are_described_as_they_are_checked(document: dict[str, Any]) -> None:
    listing = {item["name"]: item for item in document["paths"]["/api/v1/jobs"]["get"]["parameters"]}
    assert set(listing) == {*ListQuery.__struct_fields__, "Penstock-Position"}
    assert listing["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 50}
    assert "ready" in listing["state"]["schema"]["enum"]
    job = document["paths"]["/api/v1/jobs/{id}"]["get"]["parameters"][0]
    assert (job["name"], job["in"], job["required"]) == ("id", "path", True)


CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/api/v1/jobs", {"type": "noop", "payload": {"a": 1}, "expires_at": "2099-01-01T00:00:00Z"}),
    ("POST", "/api/v1/jobs", {"type": "no good", "priority": 3}),
    ("POST", "/api/v1/jobs", {"type": "noop", "payload": "x" * 70_000}),
    ("POST", "/api/v1/jobs/bulk", [{"type": "noop"}, {"type": ""}]),
    ("GET", "/api/v1/jobs", None),
    ("GET", "/api/v1/jobs?limit=0", None),
    ("GET", "/api/v1/jobs/known", None),
    ("GET", "/api/v1/jobs/unknown", None),
    ("GET", "/api/v1/jobs/known/history", None),
    ("GET", "/api/v1/queues", None),
    ("GET", "/api/v1/counts", None),
    ("GET", "/api/v1/workers", None),
    ("GET", "/api/v1/quarantine", None),
    ("GET", "/api/v1/partitions", None),
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("POST", "/api/v1/worker/fetch", {"worker": "w", "types": ["noop"], "wait_ms": 5_000}),
    ("POST", "/api/v1/worker/fetch", {"worker": "w"}),
    ("POST", "/api/v1/worker/heartbeat", {"worker": "v", "leases": ["0.1.2"]}),
    (
        "POST",
        "/api/v1/worker/report",
        {"worker": "w", "events": [{"type": "Succeeded", "job": "x", "lease": "y"}]},
    ),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=[f"{call[0]} {call[1]}" for call in CALLS])
async def test_answers_are_as_described(whole: Bench, method: str, path: str, body: Any) -> None:
    document = (await whole.http.get("/openapi.json")).json()
    await whole.enqueue(id="known")
    answer = await whole.http.request(method, path, json=body)
    pattern = path.partition("?")[0].replace("/known", "/{id}").replace("/unknown", "/{id}")
    described = resolve(
        document, document["paths"][pattern][method.lower()]["responses"][str(answer.status_code)]
    )
    media_type = answer.headers["content-type"].partition(";")[0]
    check(document, described["content"][media_type]["schema"], answer.json())
    for name in described.get("headers", {}):
        assert name in answer.headers


async def test_the_docs_page_is_there(api: Bench) -> None:
    answer = await api.http.get("/docs")
    assert (answer.status_code, "openapi.json" in answer.text) == (200, True)
