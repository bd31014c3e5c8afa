"""Collections of tasks: what a worker runs, and what a module of handlers offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from penstock.schemas.events import Backoff, Priority
from penstock.workers.around import Middleware
from penstock.workers.dependencies import Function
from penstock.workers.errors import AppInvalid
from penstock.workers.task import Task, task

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Function)

AnyTask = Task[..., Any]


class App:
    """Tasks by job type. For handlers spread over modules; a single module needs none, its ``@task`` functions
    are found.

    ::

        app = App()


        @app.task(max_attempts=3)
        async def resize(image: Image) -> str: ...


        app.include(other_app, some_task)
    """

    def __init__(self, *members: App | AnyTask) -> None:
        self._tasks: dict[str, AnyTask] = {}
        self._middleware: list[Middleware] = []
        self._around: dict[str, tuple[list[Middleware], ...]] = {}
        """Of each task: the middleware of the apps that it is in, outermost first; each list still grows."""
        self._lifespans: list[list[Function]] = [[]]
        self.sources: tuple[str, ...] = ()
        """What it was loaded from, as ``--app`` takes it; empty where it was made by the program itself."""
        self.include(*members)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[AnyTask]:
        return iter(self._tasks.values())

    def __contains__(self, job_type: object) -> bool:
        return job_type in self._tasks

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """By job type."""
        return dict(self._tasks)

    def include(self, *members: App | AnyTask) -> None:
        """Add tasks.

        Raises:
            AppInvalid: two different tasks for one job type.
        """
        for member in members:
            if isinstance(member, App):
                for found in member:
                    self._include(found, member._around[found.name])
                known = {id(lifespans) for lifespans in self._lifespans}
                self._lifespans += [one for one in member._lifespans if id(one) not in known]
            else:
                self._include(member, ())

    def _include(self, found: AnyTask, around: tuple[list[Middleware], ...]) -> None:
        known = self._tasks.setdefault(found.name, found)
        if known is not found:
            raise AppInvalid(
                f"two tasks handle the job type {found.name!r}: {_place(known)} and {_place(found)}"
            )
        # A module has the task as well as the app that it is in: what the app says counts.
        if len(self._around.get(found.name, ())) <= len(around):
            self._around[found.name] = (self._middleware, *around)

    def only(self, job_types: Iterable[str]) -> App:
        """An app with those of the tasks that handle these types, and all that is around them."""
        app = App()
        app.include(self)
        for name in self._tasks.keys() - set(job_types):
            del app._tasks[name], app._around[name]
        return app

    # Around handlers

    def middleware(self, function: Middleware) -> Middleware:
        """A decorator: run this coroutine function around every handler of this app, those of included apps as well.

        See :mod:`penstock.workers.around`. Of several the first is the outermost; those of an app that includes another
        are outside of its.

        Raises:
            AppInvalid: it is no coroutine function.
        """
        if not inspect.iscoroutinefunction(function):
            raise AppInvalid("middleware is an async def function: async def around(ctx, call)")
        self._middleware.append(function)
        return function

    def middleware_of(self, job_type: str) -> tuple[Middleware, ...]:
        """Of a task of this app, outermost first."""
        return tuple(one for middleware in self._around[job_type] for one in middleware)

    def lifespan(self, function: F) -> F:
        """A decorator: open this generator, ``async`` or not, when a worker of this app starts, and let it go on after
        its ``yield`` when the worker has ended. It may have dependencies of scope ``worker``.
        """
        self._lifespans[0].append(function)
        return function

    @property
    def lifespans(self) -> tuple[Function, ...]:
        """Those of included apps as well."""
        return tuple(one for lifespans in self._lifespans for one in lifespans)

    @overload
    def task(self, function: Callable[P, R]) -> Task[P, R]: ...

    @overload
    def task(
        self, *, name: str = "", queue: str | None = None, pool: str | None = None, priority: Priority | None = None,
        max_attempts: int | None = None, backoff: Backoff | Mapping[str, Any] | None = None,
        timeout_ms: int | None = None, concurrency: int | None = None, process: bool = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...  # fmt: skip

    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """As :func:`penstock.workers.task.task`, and adds the task."""

        def made(handler: Callable[..., Any]) -> AnyTask:
            found: AnyTask = task(**options)(handler)
            self.include(found)
            return found

        return made if function is None else made(function)


def collect(tasks: App | Iterable[AnyTask]) -> App:
    """An app of tasks, each with a signature that can be filled.

    Raises:
        AppInvalid: none, or two for one job type.
        TaskInvalid: a signature cannot be filled from a payload.
    """
    app = tasks if isinstance(tasks, App) else App(*tasks)
    if not len(app):
        raise AppInvalid("there are no tasks to run")
    for found in app:
        _ = found.arguments
    return app


def _place(found: AnyTask) -> str:
    function = found.function
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', found.name)}"
