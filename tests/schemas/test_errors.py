"""The tree of errors: what programs compare is stable and unambiguous."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.schemas import errors
from penstock.schemas.errors import LogError, PenstockError, Undecodable


def tree(root: type[PenstockError] = PenstockError) -> Iterator[type[PenstockError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())


def test_codes_are_unique_and_speakable() -> None:
    codes = [error.code for error in ALL]
    assert sorted(codes) == sorted(set(codes))
    assert all(code.isidentifier() and code == code.lower() for code in codes)
    assert all("code" in vars(error) for error in ALL)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_each_says_what_happened_and_how_it_is_answered(error: type[PenstockError]) -> None:
    assert error().message == " ".join((error.__doc__ or "").split())
    assert error("other words", job="j").message == "other words"
    assert error("other words", job="j").details == {"job": "j"}
    assert error.status in {400, 403, 404, 405, 409, 410, 413, 415, 422, 500, 503}
    assert 0 < error.exit_code < 10
    assert str(error("a b")) == "a b"


def test_callers_faults_and_ours_are_told_apart() -> None:
    statuses = {error.code: error.status for error in ALL}
    for code, status in {
        "malformed_json": 400, "invalid_field": 422, "invalid_cursor": 422, "too_large": 413, "not_found": 404,
        "job_not_found": 404, "conflict": 409, "id_in_use": 409, "log_unavailable": 503, "append_unknown": 503,
        "read_behind": 503, "internal": 500, "lease_lost": 409,
    }.items():  # fmt: skip
        assert statuses[code] == status


def test_whatever_the_log_raises_is_a_log_error() -> None:
    assert {error.code for error in tree(LogError)} >= {
        "log_unavailable",
        "append_unknown",
        "topic_mismatch",
        "log_corrupt",
    }


def test_what_cannot_be_decoded_says_why() -> None:
    assert (Undecodable("x", reason="too_deep").reason, Undecodable().reason) == ("too_deep", "undecodable")
