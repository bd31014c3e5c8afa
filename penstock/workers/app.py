"""Collections of tasks: what a worker runs, and what a module of handlers offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from penstock.schemas.events import Backoff, Priority
from penstock.workers.errors import AppInvalid
from penstock.workers.task import Task, task

P = ParamSpec("P")
R = TypeVar("R")

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
            for found in member if isinstance(member, App) else (member,):
                known = self._tasks.setdefault(found.name, found)
                if known is not found:
                    raise AppInvalid(
                        f"two tasks handle the job type {found.name!r}: {_place(known)} and {_place(found)}"
                    )

    @overload
    def task(self, function: Callable[P, R]) -> Task[P, R]: ...

    @overload
    def task(
        self, *, name: str = "", queue: str | None = None, pool: str | None = None, priority: Priority | None = None,
        max_attempts: int | None = None, backoff: Backoff | Mapping[str, Any] | None = None,
        timeout_ms: int | None = None,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...  # fmt: skip

    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """As :func:`penstock.workers.task.task`, and adds the task."""

        def made(handler: Callable[..., Any]) -> AnyTask:
            found: AnyTask = task(**options)(handler)
            self.include(found)
            return found

        return made if function is None else made(function)


def collect(tasks: App | Iterable[AnyTask]) -> dict[str, AnyTask]:
    """Tasks by job type, each with a signature that can be filled.

    Raises:
        AppInvalid: none, or two for one job type.
        TaskInvalid: a signature cannot be filled from a payload.
    """
    app = tasks if isinstance(tasks, App) else App(*tasks)
    if not len(app):
        raise AppInvalid("there are no tasks to run")
    for found in app:
        _ = found.arguments
    return dict(app.tasks)


def _place(found: AnyTask) -> str:
    function = found.function
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', found.name)}"
