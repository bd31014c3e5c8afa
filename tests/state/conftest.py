"""Both kinds of store, under the same tests."""

from __future__ import annotations

import pytest

from penstock.state.partition_store import StoreFactory, rocks_store
from tests.state.shelf import Shelf


@pytest.fixture(params=["memory", "rocks"])
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    return Shelf() if request.param == "memory" else rocks_store
