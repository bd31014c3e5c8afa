"""What schemathesis is not left free to choose: how long a request waits, and what is no wrong request after all."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Waiting is allowed, and takes its time: with numbers of its own it would be most of what this test does."""
    for fields in (case.query, case.body):
        if isinstance(fields, dict) and isinstance(fields.get("wait_ms"), int) and fields["wait_ms"] > 0:
            fields["wait_ms"] = 1
    if case.query and "until" in case.query and "wait_ms" not in case.query:
        case.query["wait_ms"] = 1


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """A parameter without a value is not given (`allowEmptyValue`), which schemathesis takes for a wrong one."""
    return all(value != "" for value in (case.query or {}).values())
