"""From payloads to parameters and back."""

import enum
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

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


class Colour(enum.Enum):
    RED = "red"


class Named(BaseModel):
    made_at: datetime = Field(alias="madeAt")
    where: Path
    amounts: set[Decimal] = set()


class Inner(msgspec.Struct):
    day: date
    where: Path
    named: Named | None = None


@dataclass
class Around:
    inner: Inner
    raw: bytes = b""


class Place(NamedTuple):
    where: Path
    floor: int = 0


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
NAMED = Named(madeAt=MOMENT, where=Path("/a/b"), amounts={Decimal("1.10")})
INNER = Inner(MOMENT.date(), Path("x"), NAMED)
KEY = UUID("0811fffa-7e23-4b1b-82b4-d4e92560604d")

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (Path, Path("/a/b")), (list[Path], [Path("a")]), (Path | None, Path("a")), (dict[Path, int], {Path("a"): 1}),
    (datetime, MOMENT), (datetime, MOMENT.replace(tzinfo=None)), (date, MOMENT.date()), (time, time(1, 2, 3)),
    (timedelta, timedelta(days=1, microseconds=5)), (timedelta, timedelta(seconds=-1.5)),
    (UUID, KEY), (Decimal, Decimal("1.10")), (int, 10**30), (Colour, Colour.RED), (Literal["a"], "a"),
    (dict[UUID, Colour], {KEY: Colour.RED}), (dict[date, list[Named]], {MOMENT.date(): [NAMED]}),
    (set[int], {1, 2}), (frozenset[Path], frozenset({Path("a")})), (tuple[Path, int], (Path("a"), 1)),
    (bytes, b"abc"), (bytes, b"\xff\x00"), (list[bytes], [b"abc"]), (IPv4Address, IPv4Address("10.0.0.1")),
    (Named, NAMED), (list[Named], [NAMED]), (dict[str, Named | None], {"a": NAMED, "b": None}),
    (Inner, INNER), (list[Inner], [INNER]), (dict[str, Inner], {"a": INNER}), (Place, Place(Path("a"), 2)),
    (Around, Around(INNER, b"abc")), (list[Around], [Around(INNER, b"\xff")]),
]  # fmt: skip


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside another"])
@pytest.mark.parametrize(("hint", "value"), ROUND_TRIPS)
def test_what_is_enqueued_is_what_the_handler_gets(hint: Any, value: Any, alone: bool) -> None:
    def only(it: Any) -> None: ...
    def both(it: Any, n: int = 0) -> None: ...

    handler = only if alone else both
    handler.__annotations__["it"] = hint
    arguments = Arguments(handler)
    read = arguments.read(msgspec.json.encode(arguments.payload_of((value,), {})))["it"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value", [SecretStr("x"), (n for n in [1]), object()], ids=["secret", "generator", "object"]
)
def test_what_would_arrive_as_something_else_is_refused(value: object) -> None:
    with pytest.raises(InvalidPayload, match="is not JSON"):
        Arguments(bare).payload_of((value,), {})
