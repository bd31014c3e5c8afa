"""Which rules the log follows, and asking for newer ones."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import deps_of
from penstock.api.http import Answer, Operation, answer, query, read_json
from penstock.api.models import NoQuery
from penstock.client.rules import RulesStatus, rules_status, want_rules

LISTEN_MS = 1_500
"""Everybody speaks every half second."""

_MOST_BYTES = 1_024


class RulesWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """``version``: of the rules that all partitions are to follow."""

    version: Annotated[int, Meta(ge=1, le=1_000)]


async def get_rules(request: Request) -> Response:
    query(request, NoQuery)
    deps = deps_of(request)
    return answer(await rules_status(deps.log, deps.topics, LISTEN_MS))


async def activate_rules(request: Request) -> Response:
    """The wish is durable when this answers; leaders activate the rules within seconds, one version after another."""
    query(request, NoQuery)
    deps = deps_of(request)
    wanted = await read_json(request, RulesWanted, _MOST_BYTES)
    status = await want_rules(deps.log, deps.topics, wanted.version, "api", listen_ms=LISTEN_MS)
    return answer(status, 202)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/rules",
        endpoint=get_rules,
        summary="Which rules each partition follows, and who could follow newer ones",
        tag="audit",
        query=NoQuery,
        answers={200: Answer("Rules in force, and live processes.", RulesStatus)},
        problems=(422, 503),
    ),
    Operation(
        method="POST",
        path="/api/v1/rules",
        endpoint=activate_rules,
        summary="Ask that all partitions follow newer rules",
        tag="audit",
        query=NoQuery,
        body=RulesWanted,
        answers={202: Answer("It is asked for: as it was just before.", RulesStatus)},
        problems=(400, 409, 413, 415, 422, 503),
    ),
)
