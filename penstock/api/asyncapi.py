"""The AsyncAPI document: the topics of the log, and what stands on them, made from the very types that are read.

``GET /asyncapi.json`` gives it with the names of this namespace.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Union, cast, get_args

import msgspec
from msgspec import NODEFAULT, Raw, Struct
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.deps import deps_of
from penstock.api.http import Answer, Operation, answer, query
from penstock.api.models import NoQuery
from penstock.schemas import messages
from penstock.schemas.events import PRIORITIES, AnyEvent
from penstock.schemas.topics import Topics

_REF = "#/components/schemas/{name}"

_JOBS = (
    "Every transition of every job. Anyone may write `Enqueued` and the verbs, with any key and partitioner."
)
_SIGNALS = "Hints to workers and among processes: partition 0 to all, the others to the workers whose route they are."
_LINES = "A record's value is newline-delimited JSON: one message a line, one or many lines a record."


@functools.cache
def document(topics: Topics, *, version: str) -> dict[str, Any]:
    """AsyncAPI 3.0. Made once, and not to be changed."""
    events = [kind for kind in get_args(AnyEvent) if kind.__name__ not in _ELSEWHERE]
    signals = get_args(messages.Signal)
    reports = get_args(messages.Report)
    schemas = _schemas([*events, *signals, *reports, messages.Delivery])
    channels = {
        "jobs": _channel(topics.jobs, events, _JOBS),
        "signals": _channel(topics.signals, signals, _SIGNALS),
        "workers": _channel(
            topics.workers, reports, "What workers tell: credits, and the leases that they hold."
        ),
        **{
            f"work.{priority}": _channel(
                topics.work(priority),
                [messages.Delivery],
                f"Leased jobs of priority {priority}, to their holders.",
            )
            for priority in PRIORITIES
        },
    }
    sent = {name for channel in channels.values() for name in channel["messages"]}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Penstock's log", "version": version, "description": _LINES},
        "defaultContentType": "application/x-ndjson",
        "channels": channels,
        "operations": _operations(channels),
        "components": {
            "messages": {name: _message(name, schema) for name, schema in schemas.items() if name in sent},
            "schemas": schemas,
        },
    }


_ELSEWHERE = frozenset({"Configured"})
"""Events of the control topic, which only Penstock's own processes write and read."""


def _channel(address: str, kinds: Iterable[type[Struct]], description: str) -> dict[str, Any]:
    found = {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in kinds}
    return {"address": address, "description": description, "messages": found}


def _operations(channels: dict[str, Any]) -> dict[str, Any]:
    """What a program of one's own may do: put in jobs and wishes about them, and follow what becomes of them."""
    channel = {"$ref": "#/channels/jobs"}
    written = [name for name in channels["jobs"]["messages"] if name in _OF_PRODUCERS]
    return {
        "produce": {
            "action": "send",
            "channel": channel,
            "summary": "Put jobs in, and ask for changes of them",
            "messages": [{"$ref": f"#/channels/jobs/messages/{name}"} for name in written],
        },
        "follow": {"action": "receive", "channel": channel, "summary": "Read what is proposed, in order"},
    }


_OF_PRODUCERS = frozenset(
    {"Enqueued", "CancelRequested", "RetryRequested", "Held", "Unheld", "Edited", "Deleted"}
)


def _message(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    summary = str(schema.get("description", "")).partition("\n\n")[0].replace("\n", " ")
    return {"name": name, "summary": summary, "payload": {"$ref": _REF.format(name=name)}}


def _schemas(kinds: Iterable[type[Struct]]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([_shown(kind) for kind in kinds], ref_template=_REF)
    return {name: _portable(schema) for name, schema in components.items()}


def _portable(schema: Any) -> Any:
    """With patterns that other languages know: the end of a text is ``$`` to them, as there are no line ends in it."""
    if isinstance(schema, dict):
        found = cast("dict[str, Any]", schema)
        return {
            name: value.replace(r"\Z", "$")
            if name == "pattern" and isinstance(value, str)
            else _portable(value)
            for name, value in found.items()
        }
    return [_portable(part) for part in cast("list[Any]", schema)] if isinstance(schema, list) else schema


# msgspec describes no `Raw` with a default, which bodies on lines are: in the document they are any value.


def _shown(kind: Any) -> Any:
    """The type as a document has it."""
    if kind is Raw:
        return Any
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _shown_struct(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return functools.reduce(lambda found, meta: Annotated[found, meta], args[1:], _shown(args[0]))
    if origin in (typing.Union, types.UnionType):
        return Union[tuple(_shown(part) for part in args)]  # noqa: UP007 - of as many as there are
    if origin is not None and origin is not typing.Literal:
        return origin[tuple(part if part is ... else _shown(part) for part in args)]
    return cast("Any", kind)


@functools.cache
def _shown_struct(kind: type[Struct]) -> Any:
    config = kind.__struct_config__
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        shown = _shown(field.type)
        default = field.default
        if field.default_factory is not NODEFAULT:
            default = msgspec.field(default_factory=field.default_factory)
        if isinstance(default, Raw):
            default = msgspec.json.decode(default)
        if isinstance(default, Struct):
            default = msgspec.field(default_factory=functools.partial(msgspec.to_builtins, default))
        fields.append(
            (field.encode_name, shown) if default is NODEFAULT else (field.encode_name, shown, default)
        )
    made = msgspec.defstruct(
        kind.__name__,
        fields,
        kw_only=True,
        array_like=config.array_like,
        tag=config.tag,
        tag_field=config.tag_field,
    )
    made.__doc__ = kind.__doc__
    return made


async def get_document(request: Request) -> Response:
    deps = deps_of(request)
    query(request, NoQuery)
    return answer(document(deps.topics, version=deps.version))


OPERATIONS = (
    Operation(
        method="GET",
        path="/asyncapi.json",
        endpoint=get_document,
        summary="The topics of the log and what stands on them, as an AsyncAPI document",
        tag="health",
        query=NoQuery,
        answers={200: Answer("The document.", dict[str, Any])},
        problems=(422,),
    ),
)
