"""The API's page at /docs: whole without the internet."""

from __future__ import annotations

import re

from tests.api.harness import Bench


async def test_the_page_and_all_it_loads_come_from_here(api: Bench) -> None:
    page = await api.http.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/docs-files/"), f"{address} is not served here"
        assert (await api.http.get(address)).status_code == 200
    assert "/openapi.json" in page.text
