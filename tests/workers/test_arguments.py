"""From payloads to parameters and back."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field

from penstock.workers.arguments import Arguments, PayloadMismatch
from penstock.workers.context import Context
from penstock.workers.errors import InvalidPayload, TaskInvalid


class Size(BaseModel):
    width: int
    height: int = 1


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Size
    tags: list[str] = []


@dataclass
class Point:
    x: int
    y: int = 0
    names: list[str] = field(default_factory=list)


class Reading(msgspec.Struct):
    sensor: str
    value: float = 0.0


class Holder(msgspec.Struct):
    size: Size


class Address(TypedDict):
    city: str


def model(size: Size) -> None: ...
def point(p: Point) -> None: ...
def reading(r: Reading) -> None: ...
def holder(h: Holder) -> None: ...
def address(a: Address) -> None: ...
def either(thing: Size | Point) -> None: ...
def maybe(size: Size | None = None) -> None: ...
def mapping(d: dict[str, int]) -> None: ...
def anything(it: Any) -> None: ...
def bare(it) -> None: ...  # type: ignore[no-untyped-def]  # no annotation is the case that is tested
def number(payload: int) -> None: ...
def nothing() -> None: ...
def only_context(ctx: Context) -> None: ...
def one(n: int) -> None: ...
def two(a: int, b: str = "b") -> None: ...
def mixed(size: Size, ctx: Context, *, times: int = 1) -> None: ...
def structs(r: Reading, times: int = 1) -> None: ...
def open_(a: int, **rest: Any) -> None: ...
def open_structs(r: Reading, **rest: Any) -> None: ...
def constrained(n: Annotated[int, Field(gt=0)], mode: Literal["a", "b"] = "a") -> None: ...
def names(copy: int, json: int, model_fields: int) -> None: ...
def listed(sizes: list[Size]) -> None: ...


@pytest.mark.parametrize(
    ("function", "payload", "arguments"),
    [
        (model, {"width": 3}, {"size": Size(width=3)}),
        (point, {"x": 1, "names": ["a"]}, {"p": Point(1, names=["a"])}),
        (reading, {"sensor": "s"}, {"r": Reading("s")}),
        (holder, {"size": {"width": 2}}, {"h": Holder(Size(width=2))}),
        (address, {"city": "Bonn"}, {"a": {"city": "Bonn"}}),
        (either, {"x": 1}, {"thing": Point(1)}),
        (maybe, {"width": 1}, {"size": Size(width=1)}),
        (maybe, None, {}),
        (mapping, {"a": 1}, {"d": {"a": 1}}),
        (anything, [1, 2], {"it": [1, 2]}),
        (bare, {"a": 1}, {"it": {"a": 1}}),
        (number, 7, {"payload": 7}),
        (nothing, None, {}),
        (nothing, {}, {}),
        (only_context, None, {}),
        (one, {"n": 1}, {"n": 1}),
        (two, {"a": 1}, {"a": 1}),
        (two, {"a": 1, "b": "c"}, {"a": 1, "b": "c"}),
        (mixed, {"size": {"width": 1}}, {"size": Size(width=1)}),
        (mixed, {"size": {"width": 1}, "times": 2}, {"size": Size(width=1), "times": 2}),
        (structs, {"r": {"sensor": "s"}}, {"r": Reading("s")}),
        (structs, {"r": {"sensor": "s"}, "times": 3}, {"r": Reading("s"), "times": 3}),
        (open_, {"a": 1, "z": [1]}, {"a": 1, "z": [1]}),
        (open_structs, {"r": {"sensor": "s"}, "z": 1}, {"r": Reading("s"), "z": 1}),
        (constrained, {"n": 1, "mode": "b"}, {"n": 1, "mode": "b"}),
        (names, {"copy": 1, "json": 2, "model_fields": 3}, {"copy": 1, "json": 2, "model_fields": 3}),
        (listed, {"sizes": [{"width": 1}]}, {"sizes": [Size(width=1)]}),
    ],
)
def test_payloads_that_fit(function: Any, payload: object, arguments: dict[str, object]) -> None:
    assert Arguments(function).read(msgspec.json.encode(payload)) == arguments


@pytest.mark.parametrize(
    ("function", "payload", "field"),
    [
        (model, {"width": "wide"}, "width"),
        (model, {}, "width"),
        (model, None, ""),
        (point, {"x": [1]}, "x"),
        (reading, {"sensor": 5}, "sensor"),
        (holder, {"size": {"width": "w"}}, "size"),
        (address, {}, "city"),
        (mapping, {"a": "x"}, "a"),
        (number, "x", ""),
        (nothing, {"a": 1}, ""),
        (one, {}, "n"),
        (one, None, "n"),
        (one, 5, ""),
        (two, {"a": 1, "c": 1}, "c"),
        (mixed, {"size": {"width": 1}, "ctx": 1}, "ctx"),
        (mixed, {"size": {"width": 1, "height": "x"}}, "size.height"),
        (structs, {"r": {"sensor": 1}}, "r.sensor"),
        (constrained, {"n": 0}, "n"),
        (constrained, {"n": 1, "mode": "z"}, "mode"),
        (listed, {"sizes": [{"width": 1}, {}]}, "sizes.1.width"),
    ],
)
def test_payloads_that_do_not_fit_name_the_field(function: Any, payload: object, field: str) -> None:
    with pytest.raises(PayloadMismatch) as caught:
        Arguments(function).read(msgspec.json.encode(payload))
    assert caught.value.problems[0][0] == field
    assert caught.value.problems[0][1]


def test_values_are_not_told_for_they_may_be_secret() -> None:
    with pytest.raises(PayloadMismatch) as caught:
        Arguments(model).read(b'{"width":"hunter2"}')
    assert "hunter2" not in str(caught.value)


def test_the_context_may_stand_anywhere() -> None:
    assert Arguments(mixed).context_name == "ctx"
    assert Arguments(model).context_name == ""
    assert list(Arguments(mixed).signature.parameters) == ["size", "times"]


def positional(a: int, /) -> None: ...
def starred(*args: int) -> None: ...
def twice(a: Context, b: Context) -> None: ...
def unknown(a: "NoSuchThing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - what cannot be resolved is tested


class Opaque:
    pass


def opaque(a: Opaque, b: int) -> None: ...


@pytest.mark.parametrize("function", [positional, starred, twice, unknown, opaque])
def test_signatures_that_no_payload_can_fill(function: Any) -> None:
    with pytest.raises(TaskInvalid, match=function.__name__):
        Arguments(function)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "payload"),
    [
        (model, (Size(width=3),), {}, {"width": 3, "height": 1}),
        (model, ({"width": 3},), {}, {"width": 3}),
        (model, (), {"size": Size(width=3)}, {"width": 3, "height": 1}),
        (point, (Point(1),), {}, {"x": 1, "y": 0, "names": []}),
        (reading, (Reading("s"),), {}, {"sensor": "s", "value": 0.0}),
        (nothing, (), {}, {}),
        (two, (1,), {"b": "x"}, {"a": 1, "b": "x"}),
        (mixed, (Size(width=1),), {"times": 2}, {"size": {"width": 1, "height": 1}, "times": 2}),
        (open_, (1,), {"z": 2}, {"a": 1, "z": 2}),
        (maybe, (), {}, None),
        (number, (5,), {}, 5),
    ],
)
def test_calls_become_payloads(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], payload: object
) -> None:
    assert Arguments(function).payload_of(args, kwargs) == payload


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (model, (), {}),
        (model, ({"width": "x"},), {}),
        (two, (1, "b", 3), {}),
        (two, (1,), {"c": 1}),
        (anything, (object(),), {}),
    ],
)
def test_calls_that_do_not_fit_are_refused_before_anything_is_sent(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPayload):
        Arguments(function).payload_of(args, kwargs)
