"""The pytest plugin: a fixture ``penstock_sandbox``.

::

    def test_signing_up(penstock_sandbox):
        sign_up("ada@example.org")
        penstock_sandbox.assert_enqueued("send_mail")
        penstock_sandbox.drain()

Which tasks run the jobs is said by the ini option ``penstock_app`` (modules as ``penstock worker --app`` takes them),
or for one test by a mark, which takes the arguments of :class:`~penstock.testing.Sandbox`::

    @pytest.mark.penstock(tasks, inline=True)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from penstock.testing.sandbox import Sandbox


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "penstock_app", "modules whose tasks run the jobs of penstock_sandbox", type="args", default=[]
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "penstock(tasks, inline=False, now=None, raises='never'): how penstock_sandbox is made"
    )


@pytest.fixture
def penstock_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox that every client made by the code under test speaks to."""
    # Whoever has Penstock installed loads this plugin with every run of pytest: nothing of it until it is asked for.
    from penstock.testing.sandbox import Sandbox
    from penstock.workers.loading import load_apps

    mark = request.node.get_closest_marker("penstock")
    given = dict(mark.kwargs) if mark is not None else {}
    if mark is not None and mark.args:
        given["tasks"] = mark.args[0]
    if "tasks" not in given:
        modules: list[str] = request.config.getini("penstock_app")
        given["tasks"] = load_apps(modules) if modules else ()
    with Sandbox(**given) as sandbox:
        yield sandbox
