"""What handlers may raise to say how their attempt ended, and what is wrong with a task's definition.

Any other exception of a handler fails the attempt with the exception's class name as code, to be retried by the
job's policy.
"""

from __future__ import annotations

from typing import Any, ClassVar

from penstock.schemas.errors import InvalidField, PenstockError


class TaskInvalid(PenstockError):
    """The function cannot be a task."""

    code = "task_invalid"
    exit_code = 2


class AppInvalid(PenstockError):
    """The module cannot be loaded or has no tasks."""

    code = "app_invalid"
    exit_code = 2


class InvalidPayload(InvalidField):
    """The payload does not fit the handler's parameters."""

    code = "invalid_payload"


class HandlerError(Exception):
    """Raised by a handler to fail its attempt with a code and details of its own choice.

    Args:
        message: for people.
        code: stable, for programs and retry policies; the class name when empty.
        details: anything JSON can say, at most 16 KiB.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str = "", *, code: str = "", details: Any = None) -> None:
        super().__init__(message)
        self.code = code or type(self).__name__
        self.details = details


class NonRetryable(HandlerError):
    """The attempt failed and no other can succeed: the job goes to the dead letters at once."""

    retryable = False


Fatal = NonRetryable


class RetryLater(HandlerError):
    """The attempt failed; try again after ``after_ms``, whatever the job's backoff says. Costs an attempt."""

    def __init__(self, after_ms: int, message: str = "", *, code: str = "", details: Any = None) -> None:
        super().__init__(message or f"to be tried again after {after_ms} ms", code=code, details=details)
        self.after_ms = max(0, int(after_ms))


class JobStopped(Exception):
    """The handler was told to stop, and ends. Raised by
    :meth:`penstock.workers.context.Context.raise_if_cancelled`.
    """


class DependencyFailed(PenstockError):
    """What a worker's tasks depend on cannot be opened, so it takes no jobs."""

    code = "dependency_failed"
    exit_code = 1
