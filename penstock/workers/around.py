"""What goes on around a handler's call: middleware, and the dependencies that are filled in.

Middleware is a coroutine function that is given the job's context and the call that is left::

    @app.middleware
    async def timed(ctx: Context, call: Call) -> Any:
        began = time.monotonic()
        try:
            return await call()
        finally:
            DURATIONS.labels(ctx.job_type).observe(time.monotonic() - began)

What it returns or raises is what the handler did: it may change a result, or turn an exception into another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from penstock.workers.context import Context
from penstock.workers.dependencies import Dependencies

Call = Callable[[], Awaitable[Any]]
"""The rest of the way to the handler. To be called once."""

Middleware = Callable[[Context, Call], Awaitable[Any]]
"""See the module."""

Handler = Callable[..., Awaitable[Any]]
"""A handler, called with its keyword arguments."""


class Around:
    """Calls handlers that have middleware or dependencies.

    Args:
        middleware: by job type, outermost first; types without any need not be there.
        dependencies: of the same tasks, open.
    """

    def __init__(self, middleware: Mapping[str, tuple[Middleware, ...]], dependencies: Dependencies) -> None:
        self._middleware = {name: chain for name, chain in middleware.items() if chain}
        self._dependencies = dependencies
        self.types = frozenset(self._middleware) | dependencies.types
        """Those that there is anything to do around."""

    async def call(self, context: Context, handler: Handler, kwargs: dict[str, Any]) -> Any:
        """What the handler returns, through all that is around it."""
        job_type = context.job_type
        call: Call = partial(self._with_dependencies, context, handler, kwargs)
        for middleware in reversed(self._middleware.get(job_type, ())):
            call = partial(middleware, context, call)
        return await call()

    async def _with_dependencies(self, context: Context, handler: Handler, kwargs: dict[str, Any]) -> Any:
        if context.job_type not in self._dependencies.types:
            return await handler(**kwargs)
        failure: BaseException | None = None
        value: Any = None
        async with AsyncExitStack() as stack:
            filled = await self._dependencies.fill(stack, context.job_type, context)
            try:
                value = await handler(**kwargs, **filled)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            # A provider swallowed it, which is not its to do: the attempt failed all the same.
            raise failure
        return value
