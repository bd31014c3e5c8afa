"""For the tests of those who use Penstock: jobs without a server, in virtual time, with failures where they are wanted.

::

    from penstock.testing import Sandbox


    def test_signing_up():
        with Sandbox(tasks) as sandbox:
            sign_up("ada@example.org")  # the code under test; its jobs go into the sandbox
            sandbox.assert_enqueued("send_mail", {"to": "ada@example.org"})
            sandbox.drain()
            assert sandbox.job(...)["state"] == "succeeded"

What is in it is the real thing: requests are checked and answered by the API's own code, every transition is decided by
the fold, and handlers are run by the worker. Only the log is a list in memory, and time stands still until it is told
to go on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.testing.sandbox import ANYTHING, HandlerFailed, Sandbox

__all__ = ["ANYTHING", "HandlerFailed", "Sandbox"]


def __getattr__(name: str) -> Any:
    # The pytest plugin stands in this package, and is loaded by every run of pytest.
    if name in __all__:
        return getattr(import_module("penstock.testing.sandbox"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
