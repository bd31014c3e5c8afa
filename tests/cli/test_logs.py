"""Logging: readable, or one JSON object a line."""

from __future__ import annotations

import io
import json
import logging

import pytest

from penstock.cli.logs import set_up


def logged(style: str, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    set_up(level, style, stream)
    return logging.getLogger("penstock.test"), stream


def test_json_is_one_object_a_line_with_its_fields():
    log, stream = logged("json")
    log.info("line\nbreak %s", 1, extra={"job": "a", "level": "not this one", "odd": {1, 2}.__class__})
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["message"], found["level"], found["logger"], found["job"]) == (
        "line\nbreak 1",
        "info",
        "penstock.test",
        "a",
    )
    assert found["time"].endswith("Z")


def test_json_has_the_error():
    log, stream = logged("json")
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed")
    assert "ValueError: no" in json.loads(stream.getvalue())["error"]


def test_a_field_that_json_cannot_say_costs_no_line():
    log, stream = logged("json")
    log.info("x", extra={"many": {(1, 2): 3}, "big": 1 << 80})
    assert json.loads(stream.getvalue())["message"] == "x"


def test_text_is_readable():
    log, stream = logged("text")
    log.warning("hello", extra={"job": "a"})
    assert stream.getvalue().endswith("warning penstock.test: hello job=a\n")


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_the_level_decides(level: str, lines: int):
    log, stream = logged("text", level)
    log.debug("a")
    log.info("b")
    log.warning("c")
    assert len(stream.getvalue().splitlines()) == lines


def test_setting_up_again_replaces():
    _, first = logged("text")
    log, second = logged("text")
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
