"""The HTTP application: every route, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.api import (
    asyncapi,
    audit,
    bulk,
    claims,
    cloning,
    events,
    events_ws,
    gateway_routes,
    health,
    jobs,
    operations,
    output,
    partitions,
    queues,
    rules,
    search,
    verbs,
    workers,
)
from penstock.api.deps import ApiDeps
from penstock.api.docs_page import add_docs_page
from penstock.api.http import POSITION_HEADER, Operation
from penstock.api.middleware import Around
from penstock.api.openapi import document
from penstock.api.problems import (
    on_disconnect,
    on_http_error,
    on_penstock_error,
    on_unexpected,
    on_validation_error,
)
from penstock.schemas.errors import PenstockError

OPERATIONS: tuple[Operation, ...] = (
    jobs.CREATE,
    *gateway_routes.OPERATIONS,
    *bulk.OPERATIONS,
    *search.OPERATIONS,
    *jobs.OPERATIONS,
    *output.OPERATIONS,
    *verbs.OPERATIONS,
    cloning.CLONE,
    *operations.OPERATIONS,
    *events.OPERATIONS,
    *queues.OPERATIONS,
    *workers.OPERATIONS,
    *audit.OPERATIONS,
    *partitions.OPERATIONS,
    *claims.OPERATIONS,
    *rules.OPERATIONS,
    *health.OPERATIONS,
    *asyncapi.OPERATIONS,
)
"""All operations; the busiest first, for routes are tried in order."""

DESCRIPTION = """Put jobs in, watch them, run them. Errors are `application/problem+json` with a stable `code`.

A write answers with `Penstock-Position`; a read that sends it back sees that write."""


class Application(FastAPI):
    """FastAPI behind :class:`~penstock.api.middleware.Around`, which serves the busiest operations without it."""

    front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.front is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.front(scope, receive, send)

    def put_behind(self, deps: ApiDeps, paths: Mapping[Any, str]) -> None:
        """Count and name every request from now on, and let browsers in from the origins that are allowed."""
        direct = {
            (operation.method, operation.path): operation.endpoint
            for operation in OPERATIONS
            if "{" not in operation.path
        }
        self.front = Around(super().__call__, metrics=deps.metrics, direct=direct, paths=paths)
        if deps.options.cors_origins:
            self.front = CORSMiddleware(
                self.front,
                allow_origins=list(deps.options.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=[
                    "Content-Type",
                    "X-Request-ID",
                    "traceparent",
                    "Idempotency-Key",
                    POSITION_HEADER,
                ],
                expose_headers=["Location", "Retry-After", "X-Request-ID", POSITION_HEADER],
            )


def create_app(deps: ApiDeps) -> FastAPI:
    """The application. It owns nothing of ``deps``: whoever made them starts and stops them."""
    routes = _routes(OPERATIONS)
    app = Application(
        title="Penstock",
        version=deps.version,
        # Asked for at every request otherwise; the process has metrics of its own.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.penstock = deps
    app.router.routes[:0] = [*routes, events_ws.ROUTE]
    add_docs_page(app)
    app.add_exception_handler(PenstockError, on_penstock_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_unexpected)
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(document(OPERATIONS, title="Penstock", version=deps.version, description=DESCRIPTION))
        return made

    app.openapi = openapi
    app.put_behind(deps, {route.endpoint: route.path for route in routes})
    return app


def _routes(operations: tuple[Operation, ...]) -> list[Route]:
    """One route an address and method; Starlette answers 405 from those that share an address."""
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    return [_route(path, shared) for path, shared in by_path.items()]


def _route(path: str, operations: list[Operation]) -> Route:
    by_method = {operation.method: operation.endpoint for operation in operations}
    if "GET" in by_method:
        by_method["HEAD"] = by_method["GET"]

    async def serve(request: Request) -> Response:
        return await by_method[request.method](request)

    endpoint = serve if len(operations) > 1 else operations[0].endpoint
    return Route(path, endpoint, methods=list(by_method))
