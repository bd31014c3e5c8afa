"""The short form of the faults: a few of them on three real brokers and on the embedded log.

All of them, with figures: `make faults`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from penstock.schemas.codec import encode_line
from penstock.schemas.events import Enqueued
from tests.faults import capsule, page
from tests.faults.checker import Report, Run, Story, check_ledgers, check_runs, fold_log, measure
from tests.faults.load import Ledger, expected_end, request_of
from tests.faults.records import RawRecord
from tests.faults.scenarios import ALL, SHORT
from tests.kafka_jars import KafkaUnavailable, ensure_jars

DURATION_S = 420


@pytest.mark.slow
@pytest.mark.timeout(DURATION_S + 60)
def test_promises_are_kept_under_fire(kafka_bootstrap: str, tmp_path: Path) -> None:
    assert kafka_bootstrap  # skips, or fails, where there is no Kafka
    try:
        ensure_jars()
    except KafkaUnavailable as error:
        pytest.skip(f"three brokers need Kafka's own jars: {error}")
    figures = tmp_path / "figures.json"
    code = capsule.run("tests.faults", ["--short", "--json", str(figures)], timeout_s=DURATION_S)
    found = json.loads(figures.read_text())
    assert {name: report and report["wrong"] for name, report in found.items()} == {
        name: [] for name in SHORT
    }
    assert code == 0
    for name, report in found.items():
        assert report["acknowledged"] > 100, f"{name} was no load at all"


# A checker that finds nothing finds nothing to complain about either: it is shown what it must find.


def _ledger(*jobs: str) -> Ledger:
    ledger = Ledger()
    ledger.acknowledged = {job: request_of(job, 1) for job in jobs}
    return ledger


def _done(**changes: object) -> Story:
    story = Story(0, enqueued=1, ends=1, state="succeeded", attempt=1, allowed=3, fences=["7"])
    for name, value in changes.items():
        setattr(story, name, value)
    return story


@pytest.mark.parametrize(
    ("story", "broken"),
    [
        (_done(), ""),
        (None, "acknowledged jobs are lost"),
        (_done(state="active"), "never came to an end"),
        (_done(state="dead"), "another end"),
        (_done(ends=2), "more than once"),
        (_done(enqueued=2), "more than once"),
        (_done(attempt=4), "more attempts"),
        (_done(fences=["9", "7"]), "fences did not grow"),
        # As numbers, and not as text.
        (_done(fences=["9", "10"]), ""),
    ],
)
def test_the_checker_finds_broken_promises(story: Story | None, broken: str) -> None:
    report = Report()
    check_ledgers(report, [_ledger("job")], {"job": story} if story else {})
    assert [broken in wrong for wrong in report.wrong].count(True) == bool(broken)
    assert bool(report.wrong) == bool(broken)


def test_the_checker_finds_handlers_without_a_lease_and_counts_those_that_ran_twice() -> None:
    report = Report()
    runs = [Run("start", "job", 1, "7", 1.0), Run("end", "job", 1, "7", 2.0), Run("end", "job", 1, "7", 3.0)]
    check_runs(report, runs, {"job": _done()})
    assert (report.reruns, report.wrong) == (1, [])
    check_runs(report, [*runs, Run("start", "job", 2, "8", 4.0)], {"job": _done()})
    assert "without a granted lease" in report.wrong[0]
    unrun = Report()
    check_runs(unrun, [], {"job": _done()})
    assert "no handler finished" in unrun.wrong[0]


def test_the_checker_folds_the_log_itself() -> None:
    lines = [Enqueued(job="job", job_type="add"), Enqueued(job="job", job_type="add")]
    records = [RawRecord(0, number, 1_000, True, encode_line(line)) for number, line in enumerate(lines)]
    stories, outcomes = fold_log(records, 1)
    assert (stories["job"].enqueued, stories["job"].state, stories["job"].ends) == (1, "ready", 0)
    assert outcomes == Counter(applied=1, duplicate=1)


def test_pauses_are_measured_by_partition() -> None:
    report = Report()
    runs = [Run("start", "job", 1, "7", at) for at in (9.0, 10.5, 14.0)] + [Run("end", "job", 1, "7", 14.5)]
    measure(report, runs, {"job": 9.5}, 1, fault_s=10.0, load_end_s=15.0)
    assert (report.first_s, report.pause_s, report.cleared_s) == (4.5, 3.5, 4.5)


def test_each_fault_has_a_name_of_its_own_and_the_short_form_names_some() -> None:
    names = [scenario.name for scenario in ALL]
    assert len(set(names)) == len(names)
    assert set(SHORT) <= set(names)
    assert {expected_end(request_of("a", number)) for number in range(40)} == {"succeeded", "dead"}


def test_figures_are_kept_as_they_were(tmp_path: Path) -> None:
    report = Report(acknowledged=3, refused={"stale": 2}, restarts={"api-0": 1}, wrong=["no"])
    plain = json.loads(json.dumps(asdict(report)))
    assert page.report_of(plain) == report


def test_the_table_has_a_row_for_each_fault_and_a_place_in_the_docs() -> None:
    scenarios = list(ALL[:2])
    table = page.table(scenarios, {scenarios[0].name: Report(acknowledged=17), scenarios[1].name: None})
    assert len(table.splitlines()) == 4
    assert "| 17 |" in table
    assert "not run here" in table
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.index(page.BEGIN) < text.index(page.END)
