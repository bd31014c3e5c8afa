"""What handlers need beside their payload: a pool, a client, a session; opened for them, and closed.

::

    async def pool() -> AsyncIterator[Pool]:
        async with create_pool(DSN) as opened:
            yield opened


    @task
    async def sync(user: int, db: Annotated[Pool, Depends(pool)]) -> None: ...

A provider is a function that returns the value, or a generator that yields it once and puts it away after; either may
be ``async``. Those of scope ``worker`` are opened once when the worker starts and closed when it has ended; those of
scope ``job`` for every attempt, whose exception they are told of by their ``yield``. Providers may have dependencies
themselves, and those of scope ``job`` may ask for the :class:`~penstock.workers.context.Context`. What blocks is called
in a thread.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from penstock.workers.context import Context, asks_for_context
from penstock.workers.errors import DependencyFailed, TaskInvalid

_log = logging.getLogger(__name__)

Scope = Literal["worker", "job"]

Function = Callable[..., Any]
Overrides = Mapping[Function, Function]
"""Providers, and those that are used in their stead."""


@dataclass(frozen=True, slots=True)
class Depends:
    """In ``Annotated[T, Depends(provider)]``: the parameter gets what the provider provides."""

    provider: Function
    scope: Scope = "worker"


def dependency_of(hint: Any) -> Depends | None:
    """The dependency that an annotation names, if it does."""
    if typing.get_origin(hint) is not typing.Annotated:
        return None
    return next((part for part in typing.get_args(hint)[1:] if isinstance(part, Depends)), None)


class Needing(Protocol):
    """A task, as far as its dependencies go."""

    @property
    def needs(self) -> Mapping[str, Depends]: ...


class _Provider:
    """A provider, looked at once. Raises TaskInvalid when its parameters cannot be filled."""

    def __init__(self, function: Function, scope: Scope) -> None:
        self.function = function
        self.scope: Scope = scope
        self.name: str = getattr(function, "__qualname__", repr(function))
        self.context_name = ""
        self.needs: dict[str, Depends] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            self._sort(name, parameter, _hints_of(function).get(name))

    def _sort(self, name: str, parameter: inspect.Parameter, hint: Any) -> None:
        needed = dependency_of(hint)
        if needed is not None:
            if self.scope == "worker" and needed.scope == "job":
                raise TaskInvalid(
                    f"{self.name} is opened once per worker and cannot depend on a job's {name!r}"
                )
            self.needs[name] = needed
        elif asks_for_context(hint):
            if self.scope == "worker":
                raise TaskInvalid(f"{self.name} is opened once per worker, where there is no job's context")
            self.context_name = name
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise TaskInvalid(f"{self.name}: its parameter {name!r} is no dependency, and has no default")

    async def enter(self, stack: AsyncExitStack, values: Mapping[str, Any]) -> Any:
        """The value; whatever is to be put away later is left to the stack."""
        function = self.function
        if inspect.isasyncgenfunction(function):
            return await stack.enter_async_context(asynccontextmanager(function)(**values))
        if inspect.isgeneratorfunction(function):
            manager = contextmanager(function)(**values)
            value = await asyncio.to_thread(manager.__enter__)
            stack.push_async_exit(_leaving(manager))
            return value
        if inspect.iscoroutinefunction(function):
            return await function(**values)
        value = await asyncio.to_thread(function, **values)
        return await value if inspect.isawaitable(value) else value


def _hints_of(function: Function) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError) as error:
        name = getattr(function, "__qualname__", repr(function))
        raise TaskInvalid(f"{name}: an annotation cannot be resolved: {error}") from error


def _leaving(manager: AbstractContextManager[Any]) -> Callable[..., Awaitable[bool | None]]:
    async def leave(*error: Any) -> bool | None:
        return await asyncio.to_thread(manager.__exit__, *error)

    return leave


class Dependencies:
    """The dependencies of a worker's tasks: checked when this is made, opened by :meth:`open`.

    Args:
        tasks: by job type.
        overrides: stand-ins for providers, for tests.
        lifespans: providers of scope ``worker`` that are opened first, whoever needs them.

    Raises:
        TaskInvalid: a provider's parameters cannot be filled, or providers depend on each other in a circle.
    """

    def __init__(
        self,
        tasks: Mapping[str, Needing],
        overrides: Overrides | None = None,
        lifespans: Iterable[Function] = (),
    ) -> None:
        self._overrides = dict(overrides or {})
        self._providers: dict[tuple[Function, Scope], _Provider] = {}
        self._opened: dict[Function, Any] = {}
        self._stacks: list[AsyncExitStack] = []
        """One for each, so that one that cannot be closed is no failure of those that it depends on."""
        self._needs = {name: dict(task.needs) for name, task in tasks.items() if task.needs}
        self.types = frozenset(self._needs)
        """Of the tasks that have any."""
        self._lifespans = [Depends(function) for function in lifespans]
        for needed in (*self._lifespans, *(one for needs in self._needs.values() for one in needs.values())):
            self._look_at(needed, ())

    def _look_at(self, needed: Depends, above: tuple[Function, ...]) -> None:
        key = (needed.provider, needed.scope)
        if needed.provider in above:
            names = " -> ".join(getattr(one, "__qualname__", repr(one)) for one in (*above, needed.provider))
            raise TaskInvalid(f"dependencies go in a circle: {names}")
        if key in self._providers:
            return
        function = self._overrides.get(needed.provider, needed.provider)
        found = _Provider(function, needed.scope)
        for further in found.needs.values():
            self._look_at(further, (*above, needed.provider))
        self._providers[key] = found

    async def open(self) -> None:
        """Open all that is needed once per worker, in the order in which one depends on the other.

        Raises:
            DependencyFailed: a provider raised; those opened before it are closed again.
        """
        try:
            for needed in self._lifespans:
                await self._open(needed)
            for needs in self._needs.values():
                for needed in needs.values():
                    await self._open(needed)
        except BaseException:
            await self.close()
            raise

    async def _open(self, needed: Depends) -> None:
        provider = self._providers[needed.provider, needed.scope]
        for further in provider.needs.values():
            await self._open(further)
        if needed.scope == "worker" and needed.provider not in self._opened:
            values = {name: self._opened[further.provider] for name, further in provider.needs.items()}
            stack = AsyncExitStack()
            self._stacks.append(stack)
            try:
                self._opened[needed.provider] = await provider.enter(stack, values)
            except Exception as error:
                raise DependencyFailed(
                    f"{provider.name} cannot be opened: {type(error).__name__}: {error}"
                ) from error

    async def close(self) -> None:
        """Close what was opened, last first. One that cannot be closed keeps nobody from leaving."""
        stacks, self._stacks = self._stacks, []
        self._opened.clear()
        for stack in reversed(stacks):
            try:
                await stack.aclose()
            except Exception:  # noqa: BLE001 - whatever a provider of the user raises
                _log.exception("a dependency cannot be closed")

    async def fill(self, stack: AsyncExitStack, job_type: str, context: Context) -> dict[str, Any]:
        """The values of a handler's dependencies; what is the job's own is put away by ``stack``."""
        own: dict[Function, Any] = {}
        return {
            name: await self._value(needed, stack, context, own)
            for name, needed in self._needs.get(job_type, {}).items()
        }

    async def _value(
        self, needed: Depends, stack: AsyncExitStack, context: Context, own: dict[Function, Any]
    ) -> Any:
        if needed.scope == "worker":
            return self._opened[needed.provider]
        if needed.provider not in own:
            provider = self._providers[needed.provider, needed.scope]
            values = {
                name: await self._value(further, stack, context, own)
                for name, further in provider.needs.items()
            }
            if provider.context_name:
                values[provider.context_name] = context
            own[needed.provider] = await provider.enter(stack, values)
        return own[needed.provider]
