"""From a job's payload to a handler's parameters, and back.

Parameters annotated :class:`~penstock.workers.context.Context` are the runtime's, those with a
:class:`~penstock.workers.dependencies.Depends` are provided by it; the others are the payload's:

* none: the payload is null or ``{}``;
* one that is a pydantic model, dataclass, msgspec struct, TypedDict or mapping, or has no annotation, or is
called ``payload``:
  the whole payload;
* else an object with one key a parameter; those with defaults may be left out, unknown keys are refused unless
there is
  ``**kwargs``.

Pydantic validates where it can (in its lax JSON mode), msgspec where structs are involved or pydantic declines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import msgspec
import typing_extensions
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from penstock.workers.context import asks_for_context
from penstock.workers.dependencies import Depends, dependency_of
from penstock.workers.errors import InvalidPayload, TaskInvalid
from penstock.workers.outcome import to_json

_NAMED_FIELD = re.compile(r"(?:missing required|unknown) field `([^`]*)`")

_BYTES: Literal["base64"] = "base64"
"""How bytes are written: as msgspec does."""

Problems = list[tuple[str, str]]


class PayloadMismatch(Exception):
    """The payload does not fit; ``problems`` are (field, message) pairs."""

    def __init__(self, problems: Problems) -> None:
        super().__init__("; ".join(f"{field}: {text}" if field else text for field, text in problems))
        self.problems = problems


class Arguments:
    """How one handler takes its payload.

    Raises:
        TaskInvalid: the signature cannot be filled from a payload.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._name = getattr(function, "__qualname__", repr(function))
        parameters, hints = self._inspect()
        self.context_name = ""
        """The parameter that gets the context; empty if there is none."""
        self.needs: dict[str, Depends] = {}
        """The parameters that are provided."""
        self._payload_parameters: list[inspect.Parameter] = []
        self._open = False
        for parameter in parameters:
            self._sort(parameter, hints)
        self._hints = hints
        self.whole_name = self._whole_parameter()
        """The parameter that takes the whole payload; empty if there is none."""
        self._decode = self._decoder()
        self.signature = inspect.Signature(
            [
                parameter
                for parameter in parameters
                if parameter.name != self.context_name and parameter.name not in self.needs
            ]
        )
        """What a caller gives: without the context and what is provided."""

    # Reading a payload

    def read(self, payload: bytes) -> dict[str, Any]:
        """The handler's keyword arguments.

        Raises:
            PayloadMismatch: with a problem for each field.
        """
        if self.whole_name:
            if payload == b"null" and self._payload_parameters[0].default is not inspect.Parameter.empty:
                return {}
            return {self.whole_name: self._decode(payload)}
        if payload in (b"null", b"{}"):
            payload = b"{}"
        found = self._decode(payload)
        return cast("dict[str, Any]", found)

    # Writing one

    def payload_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The payload that stands for a call, as plain JSON values.

        Raises:
            InvalidPayload: the arguments do not fit the signature or its types.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidPayload(f"{self._name}: {error}") from error
        given: Any = dict(bound.arguments)
        if self.whole_name:
            given = given.get(self.whole_name)
        else:
            for parameter in self._payload_parameters:
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    given.update(given.pop(parameter.name, {}))
        try:
            encoded = to_json(given)
            self.read(encoded)
        except PayloadMismatch as error:
            raise InvalidPayload(f"{self._name}: {error}", field=error.problems[0][0]) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(f"{self._name}: {error}") from error
        return msgspec.json.decode(encoded)

    # Looking at the signature

    def _inspect(self) -> tuple[list[inspect.Parameter], dict[str, Any]]:
        try:
            parameters = list(inspect.signature(self._function).parameters.values())
            hints = typing.get_type_hints(self._function, include_extras=True)
        except (TypeError, ValueError) as error:
            raise TaskInvalid(f"{self._name} has no signature to be read: {error}") from error
        except NameError as error:
            raise TaskInvalid(f"{self._name}: an annotation cannot be resolved: {error}") from error
        return parameters, hints

    def _sort(self, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> None:
        needed = dependency_of(hints.get(parameter.name))
        if needed is not None:
            self.needs[parameter.name] = needed
        elif asks_for_context(hints.get(parameter.name)):
            if self.context_name:
                raise TaskInvalid(f"{self._name} asks for the context twice")
            self.context_name = parameter.name
        elif parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise TaskInvalid(f"{self._name}: parameter {parameter.name!r} has no name in a payload")
        else:
            self._open = self._open or parameter.kind is inspect.Parameter.VAR_KEYWORD
            self._payload_parameters.append(parameter)

    def _whole_parameter(self) -> str:
        if len(self._payload_parameters) != 1:
            return ""
        parameter = self._payload_parameters[0]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return ""
        hint = self._hints.get(parameter.name, Any)
        return parameter.name if parameter.name == "payload" or _is_object(hint) else ""

    # Making a decoder

    def _decoder(self) -> Callable[[bytes], Any]:
        if self.whole_name:
            return self._decoder_of(self._hints.get(self.whole_name, Any))
        if not self._payload_parameters:
            return _nothing
        fields: dict[str, Any] = {}
        required: list[str] = []
        for parameter in self._payload_parameters:
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            fields[parameter.name] = self._hints.get(parameter.name, Any)
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
        return self._decoder_of_fields(fields, required)

    def _decoder_of_fields(self, fields: dict[str, Any], required: list[str]) -> Callable[[bytes], Any]:
        if any(_has_struct(hint) for hint in fields.values()):
            return self._struct_decoder(fields, required)
        members = {
            name: hint if name in required else typing_extensions.NotRequired[hint]
            for name, hint in fields.items()
        }
        shape = cast("Any", typing_extensions.TypedDict)("Payload", members)
        shape.__pydantic_config__ = ConfigDict(
            extra="allow" if self._open else "forbid",
            arbitrary_types_allowed=False,
            val_json_bytes=_BYTES,
        )
        return self._pydantic_decoder(shape) or self._struct_decoder(fields, required)

    def _struct_decoder(self, fields: dict[str, Any], required: list[str]) -> Callable[[bytes], Any]:
        optional = [name for name in fields if name not in required]
        shape = msgspec.defstruct(
            "Payload",
            [
                *((name, fields[name]) for name in required),
                *((name, fields[name] | msgspec.UnsetType, msgspec.UNSET) for name in optional),
            ],
            forbid_unknown_fields=not self._open,
        )
        decode = self._msgspec_decoder(shape)
        known = set(fields)

        def read(payload: bytes) -> dict[str, Any]:
            found = decode(payload)
            given = {name: getattr(found, name) for name in known}
            more: dict[str, Any] = msgspec.json.decode(payload) if self._open else {}
            extra = {name: value for name, value in more.items() if name not in known}
            return extra | {name: value for name, value in given.items() if value is not msgspec.UNSET}

        return read

    def _decoder_of(self, hint: Any) -> Callable[[bytes], Any]:
        decoder = None if _has_struct(hint) else self._pydantic_decoder(hint)
        return decoder or self._msgspec_decoder(hint)

    def _pydantic_decoder(self, hint: Any) -> Callable[[bytes], Any] | None:
        """None for what pydantic declines although it is fine: `typing.TypedDict` before Python 3.12."""
        try:
            return _pydantic_decoder(hint)
        except PydanticSchemaGenerationError as error:
            raise TaskInvalid(
                f"{self._name}: a parameter's type cannot be read from JSON: {error.message}"
            ) from error
        except PydanticUserError as error:
            if error.code != "typed-dict-version":
                raise TaskInvalid(f"{self._name}: {error.message}") from error
            return None

    def _msgspec_decoder(self, hint: Any) -> Callable[[bytes], Any]:
        try:
            decode = msgspec.json.Decoder(hint, dec_hook=_model_hook).decode
        except (TypeError, msgspec.MsgspecError) as error:
            raise TaskInvalid(
                f"{self._name}: a parameter's type cannot be read from JSON: {error}"
            ) from error

        def read(payload: bytes) -> Any:
            try:
                return decode(payload)
            except msgspec.ValidationError as error:
                raise PayloadMismatch([_problem(str(error))]) from error
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise PayloadMismatch([("", f"not JSON: {error}")]) from error

        return read


def _is_object(hint: Any) -> bool:
    """Whether values of this type are JSON objects by nature, or may be anything."""
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_object(typing.get_args(hint)[0])
    if origin is not None and not isinstance(origin, type):
        # A union: of objects only, None aside.
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return bool(parts) and origin is not typing.Literal and all(_is_object(part) for part in parts)
    kind: Any = origin or hint
    if not isinstance(kind, type):
        return False
    kind = cast("type[Any]", kind)
    if kind.__name__ == "UnionType":
        return all(_is_object(part) for part in typing.get_args(hint) if part is not type(None))
    return (
        issubclass(kind, BaseModel | msgspec.Struct | Mapping)
        or dataclasses.is_dataclass(kind)
        or typing_extensions.is_typeddict(kind)
    )


def _has_struct(hint: Any, above: tuple[Any, ...] = ()) -> bool:
    """Whether a struct is in it, at any depth; ``above`` are the dataclasses around it."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return True
    parts = typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in above:
        with contextlib.suppress(NameError, TypeError):
            parts += tuple(typing.get_type_hints(hint).values())
        above = (*above, hint)
    return any(_has_struct(part, above) for part in parts)


def _pydantic_decoder(hint: Any) -> Callable[[bytes], Any]:
    try:
        validate = TypeAdapter(hint, config=ConfigDict(val_json_bytes=_BYTES)).validate_json
    except PydanticUserError as error:
        # Models and their like have a configuration of their own, also for how their bytes are written.
        if error.code != "type-adapter-config-unused":
            raise
        validate = TypeAdapter(hint).validate_json

    def read(payload: bytes) -> Any:
        try:
            return validate(payload)
        except ValidationError as error:
            raise PayloadMismatch(problems_of(error)) from error

    return read


def problems_of(error: ValidationError) -> Problems:
    """A pydantic error as (field, message) pairs, without the values, which may be secret."""
    return [
        (".".join(str(part) for part in problem["loc"]), problem["msg"])
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _problem(text: str) -> tuple[str, str]:
    """msgspec's ``Expected `int`, got `str` - at `$.width```."""
    message, _, path = text.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".")
    # A missing or unknown field is named in the message; the path then leads to the object around it.
    named = _NAMED_FIELD.search(message)
    if named is not None:
        field = f"{field}.{named[1]}" if field else named[1]
    return field, message


def _model_hook(kind: type[Any], value: Any) -> Any:
    """What pydantic reads and msgspec doesn't, inside a struct: models, paths, addresses."""
    try:
        return _inner_adapter(kind).validate_json(msgspec.json.encode(value))
    except ValidationError as error:
        raise ValueError(
            "; ".join(f"{field}: {text}" if field else text for field, text in problems_of(error))
        ) from error
    except PydanticUserError as error:
        raise NotImplementedError(f"values of type {kind.__name__} cannot be read from JSON") from error


@functools.lru_cache(maxsize=256)
def _inner_adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _nothing(payload: bytes) -> dict[str, Any]:
    if payload == b"{}":
        return {}
    raise PayloadMismatch([("", "the handler takes no arguments, so the payload must be null or {}")])
