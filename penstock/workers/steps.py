"""What a job has saved between its attempts: its checkpoint, and the results of its steps.

Both stand in the job's one checkpoint on the log. Without steps it is the handler's own value as it is; with them::

    {"penstock.steps": {"<name>": <result>, ...}, "checkpoint": <the handler's own>}
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from penstock.schemas.limits import MAX_CHECKPOINT_BYTES
from penstock.workers.errors import NonRetryable

STEPS = "penstock.steps"
OWN = "checkpoint"
MAX_STEP_NAME_CHARS = 256


class Saved:
    """A job's checkpoint, as its handler sees it.

    Args:
        stored: as it stands on the log, JSON; ``null`` where there is none.
    """

    def __init__(self, stored: bytes) -> None:
        found: Any = msgspec.json.decode(stored)
        self.checkpoint: Any = found
        """The handler's own."""
        self._results: dict[str, Any] = {}
        self._begun: set[str] = set()
        if isinstance(found, dict):
            whole = cast("dict[str, Any]", found)
            if isinstance(whole.get(STEPS), dict) and whole.keys() <= {STEPS, OWN}:
                self._results, self.checkpoint = whole[STEPS], whole.get(OWN)

    def begin(self, name: str) -> None:
        """A step of this name is asked for.

        Raises:
            NonRetryable: it was already, by this attempt: which of the two a result belongs to could not be told.
        """
        if not name or len(name) > MAX_STEP_NAME_CHARS:
            raise NonRetryable(
                f"the name of a step has 1 to {MAX_STEP_NAME_CHARS} characters", code="step_invalid"
            )
        if name in self._begun:
            raise NonRetryable(f"there are two steps called {name!r} in one attempt", code="step_invalid")
        self._begun.add(name)

    def has(self, name: str) -> bool:
        return name in self._results

    def result(self, name: str) -> Any:
        """What a step gave when it was done. A copy, as a handler may change what it gets."""
        return msgspec.json.decode(msgspec.json.encode(self._results[name]))

    def with_result(self, name: str, result: Any) -> Any:
        """What is to be saved once a step is done."""
        return self._whole(self._results | {name: result}, self.checkpoint)

    def with_checkpoint(self, checkpoint: Any) -> Any:
        """What is to be saved as the handler's own checkpoint changes."""
        return self._whole(self._results, checkpoint)

    def keep(self, name: str, result: Any) -> None:
        self._results[name] = result

    @staticmethod
    def _whole(results: dict[str, Any], checkpoint: Any) -> Any:
        if not results:
            return checkpoint
        return {STEPS: results} if checkpoint is None else {STEPS: results, OWN: checkpoint}


TOO_MUCH = (
    f"the results of all steps and the checkpoint have room for {MAX_CHECKPOINT_BYTES} bytes together: "
    "let a step return where its result is kept"
)
