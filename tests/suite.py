"""Runs the whole suite as `make test` does: `python -m tests.suite`.

First everything that is not marked `slow`, spread over the cores; then the slow tests one by one, for they kill
processes, saturate the machine, or wait for time-outs. Coverage of all processes is combined. The last line is the sum
of both passes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from tests.kafka_jars import KafkaUnavailable, ensure_jars

ROOT = Path(__file__).resolve().parent.parent
NOTHING_COLLECTED = 5
MAX_PROCESSES = 4
PASSES = {
    "fast": ["-m", "not slow", "-n", "logical", f"--maxprocesses={MAX_PROCESSES}", "--dist=worksteal"],
    "slow": ["-m", "slow", "--durations=5"],
}


def main() -> int:
    """Run both passes and the coverage report; 0 when all is well."""
    started = time.monotonic()
    _fetch_kafka()
    _python("-m", "coverage", "erase")
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    sound = True
    with tempfile.TemporaryDirectory(prefix="penstock-suite-") as folder:
        for name, arguments in PASSES.items():
            print(f"== {name} tests", flush=True)
            report = Path(folder) / f"{name}.xml"
            code = _python("-m", "coverage", "run", "-m", "pytest", "-q", *arguments, f"--junitxml={report}")
            passed = _add(counts, report)
            if code == -signal.SIGSEGV and passed:
                # msgspec's types, destroyed at the interpreter's exit: everything was done and said by then.
                print("(Python crashed at its exit.)", flush=True)
                code = 0
            sound = sound and code in {0, NOTHING_COLLECTED}
    print("== coverage", flush=True)
    _python("-m", "coverage", "combine", "--quiet")
    covered = _python("-m", "coverage", "report") == 0
    summary = ", ".join(
        f"{count} {kind}" for kind, count in counts.items() if count or kind in {"passed", "failed"}
    )
    verdict = "" if covered else "; coverage is too low"
    print(f"{summary} in {time.monotonic() - started:.0f} s{verdict}", flush=True)
    return 0 if sound and covered else 1


def _fetch_kafka() -> None:
    # Outside of the tests, whose time-outs are no place for a first download.
    if not os.environ.get("KAFKA_BOOTSTRAP"):
        try:
            ensure_jars()
        except KafkaUnavailable as error:
            print(f"Kafka's jars are not at hand: {error}", flush=True)


def _python(*arguments: str) -> int:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode


def _add(counts: dict[str, int], report: Path) -> bool:
    """Add one pass's numbers, and say whether all is well; a pass that died without a report counts as one error."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")
    except (OSError, ElementTree.ParseError):
        counts["errors"] += 1
        return False
    well = True
    for suite in suites:
        total, failed, errors, skipped = (
            int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
        )
        counts["failed"] += failed
        counts["errors"] += errors
        counts["skipped"] += skipped
        counts["passed"] += total - failed - errors - skipped
        well = well and not failed and not errors
    return well


if __name__ == "__main__":
    sys.exit(main())
