"""The id of a job that is put in: given, made of an idempotency key, or new; and the home that it must have."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, cast

from penstock.client.idgen import new_id, new_id_of_key
from penstock.client.requests import JobRequest
from penstock.schemas.errors import InvalidField
from penstock.schemas.ids import home_of, home_of_key

PREFIX = "idem:"


def id_of_key(tenant: str, idempotency_key: str) -> str:
    """The id, without a home, that an idempotency key of a tenant stands for."""
    return PREFIX + sha256(f"{tenant}\0{idempotency_key}".encode()).hexdigest()[:40]


def own_id(request: JobRequest, tenant: str) -> str:
    """The id of the job that a request asks for: one that it fixes, or a new one.

    Raises:
        InvalidField: it gives an id and an idempotency key, an id that does not live where its unique or concurrency
            key does, or two such keys that have different homes.
    """
    home = _home(request)
    at_home = "" if home is None else f"~{home}"
    if request.idempotency_key is not None:
        if request.id is not None:
            raise InvalidField("idempotency_key: give it or an id, not both", field="idempotency_key")
        return id_of_key(tenant, request.idempotency_key) + at_home
    if request.id is None:
        return new_id() + at_home
    if home is not None and home_of(request.id) != home:
        raise InvalidField(
            f"id: a job with this unique or concurrency key is at home in {home!r}: end it in ~{home}",
            field="id",
        )
    return request.id


def with_id(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request with an id that a repeat will have too, unless they name one in another way."""
    if "id" not in fields and "idempotency_key" not in fields:
        unique = fields.get("unique")
        key = (
            cast("dict[str, Any]", unique).get("key")
            if isinstance(unique, dict)
            else fields.get("concurrency_key")
        )
        fields["id"] = new_id_of_key(key) if isinstance(key, str) else new_id()
    return fields


def _home(request: JobRequest) -> str | None:
    """The home that a request's keys give its job; None for a job of its own."""
    keys = [] if request.unique is None else [request.unique.key]
    if request.concurrency_key is not None:
        keys.append(request.concurrency_key)
    homes = [home_of_key(key) for key in keys]
    if len(set(homes)) > 1:
        raise InvalidField(
            "concurrency_key: it has another home than the unique key, and a job has one: give both the same key",
            field="concurrency_key",
        )
    return homes[0] if homes else None
