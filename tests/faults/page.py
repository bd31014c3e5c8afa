"""Figures as people read them: a line each while it runs, and the table in docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.checker import Report
from tests.faults.scenario import Scenario

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"

_COLUMNS = (
    "fault", "acknowledged", "lost", "ended twice", "handlers twice", "refused", "unknown", "goes on", "pause",
    "cleared", "restarts", "kept",
)  # fmt: skip


def verdict(report: Report) -> str:
    """What came of one fault, on a line; more when promises were broken."""
    figures = (
        f"{report.acknowledged} acknowledged, {report.lost} lost, {report.doubled} ended twice,"
        f" {report.reruns} handlers twice, {sum(report.refused.values())} lines refused,"
        f" {report.unknown_written} of {report.unknown} unknown written; goes on after {_s(report.first_s)},"
        f" pause {_s(report.pause_s)}, cleared {_s(report.cleared_s)}; restarts {sum(report.restarts.values())};"
        f" took {report.took_s:.0f} s"
    )
    return "\n    ".join([figures, *(f"BROKEN: {wrong}" for wrong in report.wrong)])


def table(scenarios: Sequence[Scenario], found: Mapping[str, Report | None]) -> str:
    """A row a fault, in Markdown."""
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    lines += [_row(_cells(scenario, found[scenario.name])) for scenario in scenarios]
    return "\n".join(lines)


def write(text: str) -> None:
    """Put a table between the page's marks. ValueError when they are not there."""
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no place for the table: {BEGIN} and {END}")
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def report_of(plain: Mapping[str, Any]) -> Report:
    """A report as it was before it was JSON."""
    return Report(**plain)


def _cells(scenario: Scenario, report: Report | None) -> list[str]:
    about = f"`{scenario.name}`: {scenario.about}"
    if report is None:
        return [about, *["-"] * (len(_COLUMNS) - 2), "not run here"]
    kept = "no" if report.wrong else "yes"
    if not scenario.heals:
        return [about, *["-"] * (len(_COLUMNS) - 2), "refused, loudly" if not report.wrong else "no"]
    return [
        about,
        str(report.acknowledged),
        str(report.lost),
        str(report.doubled),
        str(report.reruns),
        str(sum(report.refused.values())),
        f"{report.unknown_written} of {report.unknown}",
        _s(report.first_s),
        _s(report.pause_s),
        _s(report.cleared_s),
        str(sum(report.restarts.values())),
        kept,
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
