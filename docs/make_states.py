"""Draws docs/states.md from the table of legal transitions in penstock/core/job.py.

Run `python docs/make_states.py` after the table changed; a test fails while the page is stale.
"""

from __future__ import annotations

from pathlib import Path

from penstock.core.job import TERMINAL, TRANSITIONS, WAITING

PAGE = Path(__file__).with_name("states.md")

INTRODUCTION = """\
# States of a job

Drawn by `docs/make_states.py` from the table in `penstock/core/job.py`; don't edit by hand.

A job's state changes only by an event on the jobs log that the fold accepts. An event that finds the job in
a state which has no arrow for it is refused, and leaves the job as it was.
"""


def arrows() -> dict[tuple[str, str], list[str]]:
    """Event types by (state before, state after); "[*]" is no job."""
    found: dict[tuple[str, str], list[str]] = {}
    for event, row in TRANSITIONS.items():
        for before, afters in row.items():
            for after in sorted(afters, key=str):
                found.setdefault((before or "[*]", after or "[*]"), []).append(event)
    return found


def diagram() -> str:
    lines = ["stateDiagram-v2"]
    for (before, after), events in arrows().items():
        lines.append(f"    {before} --> {after}: {', '.join(events)}")
    return "\n".join(lines)


def table() -> str:
    lines = ["| event | in state | leads to |", "| --- | --- | --- |"]
    for event, row in TRANSITIONS.items():
        for before, afters in row.items():
            after = ", ".join(sorted(state or "(forgotten)" for state in afters))
            lines.append(f"| `{event}` | {before or '(no such job)'} | {after} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    reached = {after for _, after in arrows()}
    waiting, terminal = ", ".join(sorted(WAITING)), ", ".join(sorted(TERMINAL))
    later = ", ".join(sorted((WAITING | TERMINAL) - reached))
    return "\n".join(
        [
            INTRODUCTION,
            f"Waiting: {waiting}. Running: active. Finished: {terminal}.",
            f"No event leads to these yet: {later}.",
            "",
            "```mermaid",
            diagram(),
            "```",
            "",
            table(),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
