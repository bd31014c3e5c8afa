"""The OpenAPI document, made from the operations and from the very types that requests are checked against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from penstock.api.http import NDJSON, Answer, Operation
from penstock.api.problems import MEDIA_TYPE, Problem

_REF = "#/components/schemas/{name}"

_PROBLEMS: Mapping[int, str] = {
    400: "The body cannot be read.",
    404: "There is no such thing.",
    409: "The state of things does not allow it.",
    410: "The log does not have what follows.",
    413: "Too large.",
    415: "The content type is not read here.",
    422: "A field or parameter is unknown or has a value that is not allowed; `errors` names each.",
    500: "A bug.",
    503: "The log, the read model or a projection is not there (yet); try again.",
}


def document(
    operations: Iterable[Operation], *, title: str, version: str, description: str
) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1."""
    operations = tuple(operations)
    schemas = _Schemas(operations)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "paths": paths,
        "components": {"schemas": schemas.components, "responses": _problem_responses(schemas)},
    }


class _Schemas:
    """Schemas of all types that operations speak of."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        kinds: list[Any] = [Problem]
        for operation in operations:
            kinds += [answer.body for answer in operation.answers.values() if answer.body is not None]
            kinds += [kind for kind in (operation.body, operation.query) if kind is not None]
        unique: list[Any] = []
        for kind in kinds:
            if kind not in unique:
                unique.append(kind)
        found, self.components = msgspec.json.schema_components(unique, ref_template=_REF)
        self._found = list(zip(unique, found, strict=True))
        self._queries = {
            name.rpartition("/")[2]
            for operation in operations
            if operation.query is not None
            for name in [str(self.of(operation.query).get("$ref", ""))]
        }
        self.query_components = {
            name: self.components.pop(name) for name in self._queries if name in self.components
        }

    def of(self, kind: Any) -> dict[str, Any]:
        """A reference to a type's schema, or the schema itself."""
        return next(schema for known, schema in self._found if known == kind)

    def properties(self, kind: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
        """Fields of a struct of query parameters, and which are required."""
        schema = self.query_components[str(self.of(kind)["$ref"]).rpartition("/")[2]]
        return schema.get("properties", {}), frozenset(schema.get("required", ()))


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": _parameters(operation, schemas),
        "responses": {
            **{str(status): _answer(answer, schemas) for status, answer in operation.answers.items()},
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in operation.problems
            },
        },
    }
    if operation.body is not None:
        content = {
            kind: {"schema": _body_schema(operation, kind, schemas)} for kind in operation.body_media_types
        }
        described["requestBody"] = {"required": operation.body_required, "content": content}
    return described


def _body_schema(operation: Operation, media_type: str, schemas: _Schemas) -> dict[str, Any]:
    if media_type == NDJSON:
        return {"type": "string", "description": "One JSON object a line, each as an item of the JSON array."}
    return schemas.of(operation.body)


def _parameters(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in operation.path.split("/")
        if part.startswith("{")
    ]
    if operation.query is not None:
        properties, required = schemas.properties(operation.query)
        for name, schema in properties.items():
            # As forms send them: one without a value is not given.
            about = {"required": name in required, "allowEmptyValue": name not in required}
            found.append({"name": name, "in": "query", **about, "schema": _not_null(schema)})
    for name, description in operation.headers.items():
        found.append({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
    return found


def _not_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A query parameter is absent rather than null."""
    kept = {name: value for name, value in schema.items() if name != "default" or value is not None}
    choices = [choice for choice in kept.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {**kept, **choices[0]}
    return {**kept, "anyOf": choices} if choices else kept


def _answer(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    schema = {"type": "string"} if answer.body is None else schemas.of(answer.body)
    described: dict[str, Any] = {
        "description": answer.description,
        "content": {answer.media_type: {"schema": schema}},
    }
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    return described


def _problem_responses(schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, text in _PROBLEMS.items():
        phrase = HTTPStatus(status).phrase
        described: dict[str, Any] = {
            "description": f"{phrase}. {text}",
            "content": {MEDIA_TYPE: {"schema": schemas.of(Problem)}},
        }
        if status == 503:
            described["headers"] = {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string"}}
            }
        responses[f"Problem{status}"] = described
    return responses
