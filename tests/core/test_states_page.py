"""docs/states.md is drawn from the table of transitions."""

from __future__ import annotations

import runpy
from pathlib import Path

from penstock.core.job import TERMINAL, TRANSITIONS, WAITING
from penstock.core.rules import RULES, newest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    drawn = runpy.run_path(str(DOCS / "make_states.py"))["page"]()
    assert (DOCS / "states.md").read_text(encoding="utf-8") == drawn, "run python docs/make_states.py"


def test_every_job_event_in_force_has_a_row() -> None:
    of_the_partition = {"LeaderAnnounced", "Configured", "Forwarded", "RulesActivated", "CopySealed"}
    assert set(TRANSITIONS) == RULES[newest(RULES)].in_force - of_the_partition


def test_finished_jobs_only_leave_by_being_asked_for_again_or_forgotten() -> None:
    leaving = {
        event
        for event, row in TRANSITIONS.items()
        for state, to in row.items()
        if state in TERMINAL and to != {state}
    }
    assert leaving == {"RetryRequested", "Deleted", "Forgotten"}
    assert not WAITING & TERMINAL
