"""The API's own page at ``/docs``, with its scripts and styles from this server: it works without the internet."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

DOCS_PATH = "/docs"
_FILES_PATH = "/docs-files"
_FILES = Path(fastapi_offline.__file__).parent / "static"


def add_docs_page(app: FastAPI) -> None:
    """Serve the page. Its files come with the package fastapi-offline."""

    async def page(request: Request) -> HTMLResponse:
        root = str(request.scope.get("root_path", ""))
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} API",
            swagger_js_url=f"{root}{_FILES_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_FILES_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_FILES_PATH}/favicon.png",
        )

    app.add_route(DOCS_PATH, page, include_in_schema=False)
    app.mount(_FILES_PATH, StaticFiles(directory=_FILES), name="docs-files")
