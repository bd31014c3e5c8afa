"""Settings reach the parts that they are about."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from penstock.cli.composition import start_api, start_log, start_projection
from penstock.cli.settings import load


async def test_browsers_may_call_from_the_origins_of_the_settings(tmp_path: Path) -> None:
    settings = load(data=tmp_path, port=0, cors_origins="https://ops.example, https://b.example")
    async with AsyncExitStack() as stack:
        opened = await start_log(stack, settings)
        service, _ = await start_api(stack, settings, opened, await start_projection(stack, settings, opened))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=service.address))
        allowed: dict[str, str | None] = {}
        for origin in ("https://ops.example", "https://b.example", "https://evil.example"):
            asked = {"origin": origin, "access-control-request-method": "POST"}
            preflight = await http.options("/api/v1/jobs", headers=asked)
            allowed[origin] = preflight.headers.get("access-control-allow-origin")
    assert allowed == {
        "https://ops.example": "https://ops.example",
        "https://b.example": "https://b.example",
        "https://evil.example": None,
    }
