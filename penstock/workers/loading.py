"""Finding the tasks of ``--app MODULE``: a dotted module name or the path of a Python file, with ``:name`` to
pick one thing.

The current folder is importable, as for ``python -m``. In a module, every :class:`~penstock.workers.task.Task` and
:class:`~penstock.workers.app.App` among its names counts, so an import is enough to offer a task of another module.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from penstock.workers.app import AnyTask, App
from penstock.workers.errors import AppInvalid
from penstock.workers.task import Task


def load_apps(names: Iterable[str]) -> App:
    """The tasks of several modules together.

    Raises:
        AppInvalid: a module cannot be imported, has no tasks, or two tasks handle one job type.
    """
    app = App()
    wanted = list(names)
    for name in wanted:
        app.include(load_app(name))
    app.sources = tuple(wanted)
    return app


def load_app(name: str) -> App:
    """The tasks of one module. See the module for what ``name`` may be, and :func:`load_apps` for errors."""
    where, colon, member = name.partition(":")
    module = _module_of(where)
    if colon:
        found = getattr(module, member, None)
        if not isinstance(found, App | Task):
            raise AppInvalid(f"{where} has no task or App called {member!r}")
        return App(cast("App | AnyTask", found))
    app = App()
    for value in list(vars(module).values()):
        if isinstance(value, App | Task):
            app.include(cast("App | AnyTask", value))
    if not len(app):
        raise AppInvalid(f"{name} has no tasks: decorate a function with @task (from penstock import task)")
    return app


def source_of(found: AnyTask) -> str:
    """What to load to find a task again in another process, as ``--app`` takes it: the module of its function."""
    name = found.function.__module__
    file: str | None = getattr(sys.modules.get(name), "__file__", None)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        # The module that the program was started with has no specification of its own.
        spec = None
    return name if file is None or (spec is not None and spec.origin == file and name != "__main__") else file


def _module_of(where: str) -> ModuleType:
    try:
        if where.endswith(".py") or "/" in where:
            return _module_of_file(Path(where))
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(where)
    except AppInvalid:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise AppInvalid(
                f"there is no module {where!r} to import (looked in {Path.cwd()} and sys.path)"
            ) from error
        raise AppInvalid(f"importing {where!r} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise AppInvalid(
            f"importing {where!r} failed{_place(error)}: {type(error).__name__}: {error}"
        ) from error


def _place(error: BaseException) -> str:
    """Where in the user's code it happened, if that is known and not said already."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [frame for frame in frames if not frame.filename.startswith(_HERE)]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own and not isinstance(error, SyntaxError) else ""


_HERE = str(Path(__file__).parent.parent)


def _module_of_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise AppInvalid(f"there is no file {path}")
    known = _loaded_from(path)
    if known is not None:
        return known
    # Its neighbours are importable, as when the file is run.
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = (
        path.stem
        if path.stem.isidentifier() and path.stem not in sys.modules
        else f"penstock_app_{abs(hash(path)):x}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AppInvalid(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _loaded_from(path: Path) -> ModuleType | None:
    for module in list(sys.modules.values()):
        origin: Any = getattr(module, "__file__", None)
        if isinstance(origin, str) and origin == str(path):
            return module
    return None
