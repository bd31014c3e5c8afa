"""Penstock: background jobs that are never lost, can be explained and can be proved.

What handlers need is here::

    from penstock import task


    @task
    async def hello(name: str) -> str:
        return f"Hello, {name}!"
"""

from penstock.schemas.errors import PenstockError
from penstock.workers.app import App
from penstock.workers.context import Context
from penstock.workers.errors import JobStopped, NonRetryable, RetryLater
from penstock.workers.task import task

__version__ = "0.1.0"

__all__ = ["App", "Context", "JobStopped", "NonRetryable", "PenstockError", "RetryLater", "__version__", "task"]
