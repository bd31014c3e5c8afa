"""`--app MODULE`: modules, files, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.workers.errors import AppInvalid
from penstock.workers.loading import load_app, load_apps

HANDLERS = """
from penstock.workers.app import App
from penstock.workers.task import task
from neighbour import VALUE

@task
async def first(n: int) -> int:
    return n + VALUE

app = App()

@app.task(name="second")
def second() -> None: ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before, path = set(sys.modules), list(sys.path)
    (tmp_path / "neighbour.py").write_text("VALUE = 1\n")
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["my_handlers", "my_handlers.py", "./my_handlers.py"])
def test_tasks_and_apps_of_a_module_are_found(folder: Path, name: str) -> None:
    assert set(load_app(name).tasks) == {"first", "second"}


def test_one_thing_can_be_picked(folder: Path) -> None:
    assert set(load_app("my_handlers:app").tasks) == {"second"}
    assert set(load_app("my_handlers:first").tasks) == {"first"}
    with pytest.raises(AppInvalid, match="'VALUE'"):
        load_app("my_handlers:VALUE")


def test_the_same_file_twice_is_one_module(folder: Path) -> None:
    assert set(load_apps(["my_handlers.py", str(folder / "my_handlers.py")]).tasks) == {"first", "second"}


def test_a_file_may_have_any_name(folder: Path) -> None:
    (folder / "json-tasks.py").write_text(HANDLERS)
    assert len(load_app("json-tasks.py")) == 2


def test_two_tasks_for_one_type_are_refused(folder: Path) -> None:
    (folder / "others.py").write_text(HANDLERS)
    with pytest.raises(AppInvalid, match="first"):
        load_apps(["my_handlers", "others"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "has no tasks"),
        ("import no_such_thing\n", "no_such_thing"),
        ("x = 1\n1 / 0\n", "wrong.py:2: ZeroDivisionError"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(1)\n", "SystemExit"),
    ],
)
@pytest.mark.parametrize("name", ["wrong", "wrong.py"])
def test_what_is_wrong_with_a_module_is_said(folder: Path, name: str, content: str, message: str) -> None:
    (folder / "wrong.py").write_text(content)
    with pytest.raises(AppInvalid, match=message):
        load_app(name)


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "no module"), ("absent.deep", "no module"), ("absent.py", "no file")]
)
def test_a_module_that_is_not_there(folder: Path, name: str, message: str) -> None:
    with pytest.raises(AppInvalid, match=message):
        load_app(name)
