"""`make demo`: Penstock at work on this machine, with nothing installed but Python packages.

A server and a worker are started as processes of their own; the worker is killed in the middle of its work, and another
one goes on where it was. The demonstration checks what it promises, and exits with 1 when anything did not happen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from material import Sales, draw_pictures, write_sales
from processes import DemoFailed, Processes, free_port, shown
from tasks import Picture, SalesTable, charge_card, remind, sales_report, send_mail, thumbnails

from penstock.client.http import Client
from penstock.client.requests import JobOptions
from penstock.schemas.errors import PenstockError

ROWS = 20_000
KILL_AT_ROW = 8_000
WIDTHS = [1280, 640, 320, 160]
DELAY_MS = 6_000
POLL_S = 0.2
WATCH_TIMEOUT_S = 60.0
TASKS = Path(__file__).resolve().parent / "tasks.py"
WORKER = "demo-worker"

Job = dict[str, Any]


class Story:
    """Prints what happens, with the seconds since the start, and keeps account of what was promised."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""
        self.broken: list[str] = []
        self.kept = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def chapter(self, text: str) -> None:
        print(f"\n== {text}", flush=True)

    def say(self, text: str) -> None:
        """One line; not the same twice in a row."""
        if text != self._last:
            print(f"{self.elapsed_s:6.1f} s  {text}", flush=True)
            self._last = text

    def show(self, text: str) -> None:
        """The output of a command."""
        for line in text.rstrip().splitlines():
            print(f"          {line.rstrip()}", flush=True)

    def promise(self, text: str, kept: object) -> None:
        """Check one promise."""
        if kept:
            self.kept += 1
        else:
            self.broken.append(text)
        self.say(f"{'ok  ' if kept else 'FAIL'}  {text}")


class Demo:
    """The whole story, told on one server in one folder."""

    def __init__(self, folder: Path, port: int, processes: Processes, client: Client, story: Story) -> None:
        self.folder = folder
        self.server = f"http://127.0.0.1:{port}"
        self.processes = processes
        self.client = client
        self.story = story
        self._port = port
        self._ids: dict[str, str] = {}
        self._pictures: list[str] = []

    def run(self) -> None:
        sales, pictures = self._make_material()
        self._start()
        self._enqueue(sales, pictures)
        self._watch_until_killed()
        self._watch_to_the_end()
        self._check_jobs(sales)
        self._show_history()
        self._verify_log()

    # The chapters

    def _make_material(self) -> tuple[Sales, list[Path]]:
        self.story.chapter("Something to work on")
        pictures = draw_pictures(self.folder / "pictures")
        sales = write_sales(self.folder / "sales.csv", ROWS)
        megabytes = sum(path.stat().st_size for path in pictures) / 1e6
        self.story.say(f"drew {len(pictures)} pictures ({megabytes:.1f} MB of JPEG)")
        self.story.say(f"wrote sales.csv with {ROWS:,} rows")
        return sales, pictures

    def _start(self) -> None:
        self.story.chapter("A server with an embedded log, and a worker that speaks HTTP to it")
        command = ("dev", "--data", "data", "--port", str(self._port))
        self.story.say(f"$ {shown(command)} &")
        self.processes.start("server", *command)
        self.processes.wait_ready(self.client)
        self.story.say(f"the server is ready; its documentation is at {self.server}/docs")
        self.worker = self._start_worker()

    def _start_worker(self) -> Any:
        options = ("--server", self.server, "--name", WORKER, "--concurrency", "3")
        self.story.say(f"$ {shown(('worker', '--app', 'examples/demo/tasks.py', *options))} &")
        return self.processes.start("worker", "worker", "--app", str(TASKS), *options)

    def _enqueue(self, sales: Sales, pictures: list[Path]) -> None:
        self.story.chapter("Jobs")
        thumbs = self.folder / "thumbnails"
        thumbs.mkdir()
        client, ids = self.client, self._ids
        table = SalesTable(path=sales.path, rows=sales.rows)
        ids["report"] = sales_report.enqueue_sync(table, client=client, priority="high")["id"]
        for path in pictures:
            picture = Picture(path=path, folder=thumbs, widths=WIDTHS)
            self._pictures.append(thumbnails.enqueue_sync(picture, client=client, queue="pictures")["id"])
        urgent: JobOptions = {
            "priority": "high",
            "backoff": {"kind": "exponential", "base_ms": 250, "jitter": 0.0},
        }
        ids["mail"] = send_mail.enqueue_sync("ada@example.org", client=client, options=urgent)["id"]
        urgent["max_attempts"] = 3
        ids["card"] = charge_card.enqueue_sync("4000-0002", client=client, options=urgent)["id"]
        ids["reminder"] = remind.enqueue_sync(
            "tea is ready", client=client, delay_ms=DELAY_MS, priority="critical"
        )["id"]
        self.story.say(
            f"1 report over {ROWS:,} rows, {len(pictures)} pictures, each for {len(WIDTHS)} thumbnails"
        )
        self.story.say("1 mail that fails twice, 1 payment that always fails (3 attempts)")
        self.story.say(f"1 reminder with a delay of {DELAY_MS / 1000:.0f} s")

    def _watch_until_killed(self) -> None:
        self.story.chapter(f"At work, until row {KILL_AT_ROW:,} of the report")

        def far_enough(jobs: dict[str, Job]) -> bool:
            return (jobs[self._ids["report"]]["checkpoint"] or {}).get("rows", 0) >= KILL_AT_ROW

        jobs = self._watch(far_enough)
        self.processes.kill(self.worker)
        held = sorted(job["type"] for job in jobs.values() if job["state"] == "active")
        self.story.say(f"SIGKILL to the worker while it held {', '.join(held)}")

    def _watch_to_the_end(self) -> None:
        self.story.chapter("Another worker takes over")
        self.worker = self._start_worker()
        done = {"succeeded", "dead", "cancelled", "expired"}
        self._watch(lambda jobs: all(job["state"] in done for job in jobs.values()))

    def _watch(self, until: Any) -> dict[str, Job]:
        """Tell of every change until ``until`` says of the jobs by id that it is enough."""
        deadline = time.monotonic() + WATCH_TIMEOUT_S
        while True:
            self.processes.check()
            jobs = {job["id"]: job for job in self.client.jobs()}
            self.story.say(self._line(jobs))
            if until(jobs):
                return jobs
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"nothing more happens; the worker says:\n{self.processes.log_tail('worker')}"
                )
            time.sleep(POLL_S)

    def _line(self, jobs: dict[str, Job]) -> str:
        report = jobs[self._ids["report"]]
        progress = report["progress"] or {}
        pictures = sum(jobs[job_id]["state"] == "succeeded" for job_id in self._pictures)
        told = progress.get("message") if report["state"] == "active" else report["state"]
        others = "  ".join(
            f"{name} {jobs[self._ids[name]]['state']}{_attempts(jobs[self._ids[name]])}"
            for name in ("mail", "card", "reminder")
        )
        done = f"{pictures:>2} of {len(self._pictures)} pictures"
        return f"report {_bar(progress.get('percent') or 0)} {told or '':<31} {done}  {others}"

    # What must have happened

    def _check_jobs(self, sales: Sales) -> None:
        self.story.chapter("What became of them")
        jobs = {name: self.client.get(job_id) for name, job_id in self._ids.items()}
        pictures = [self.client.get(job_id) for job_id in self._pictures]
        report, result = jobs["report"], jobs["report"]["result"] or {}
        resumed_at = result.get("resumed_at", 0)
        promise = self.story.promise
        promise(f"the report resumed at row {resumed_at:,} of {ROWS:,}", resumed_at >= KILL_AT_ROW)
        promise(
            f"it counted every row once: {result.get('revenue_cents', 0) / 100:,.2f} in sales",
            report["state"] == "succeeded"
            and (result["rows"], result["revenue_cents"], result["by_region"])
            == (sales.rows, sales.revenue_cents, sales.by_region),
        )
        rescued = [job for job in (*pictures, report) if self._was_lost(job["id"])]
        promise(
            f"what the killed worker held was done by the other one ({len(rescued)} jobs)",
            report in rescued and all(job["state"] == "succeeded" for job in rescued),
        )
        files = [path for path in (self.folder / "thumbnails").iterdir() if path.suffix == ".jpg"]
        promise(
            f"{len(files)} thumbnails of {len(pictures)} pictures are on the disk",
            len(files) == len(pictures) * len(WIDTHS)
            and all(job["state"] == "succeeded" for job in pictures),
        )
        mail, card, reminder = jobs["mail"], jobs["card"], jobs["reminder"]
        promise(
            f"the mail failed {len(mail['errors'])} times and was then {mail['result']}",
            mail["state"] == "succeeded" and len(mail["errors"]) >= 2,
        )
        promise(
            f"the payment is in the dead letters after {card['attempt']} attempts: {card['errors'][-1]['message']}",
            card["state"] == "dead" and card["attempt"] == 3,
        )
        promise(
            f"the reminder waited for {reminder['scheduled_at'][11:23]} and started at {reminder['started_at'][11:23]}",
            reminder["state"] == "succeeded" and reminder["started_at"] >= reminder["scheduled_at"],
        )

    def _was_lost(self, job_id: str) -> bool:
        return any(item["type"] == "LeaseExpired" for item in self.client.history(job_id))

    def _show_history(self) -> None:
        job_id = self._ids["report"]
        self.story.chapter(f"The history of the report (in full: penstock jobs history {job_id})")
        history = self.client.history(job_id)
        for line in history_table(history):
            self.story.show(line)
        events = [item["type"] for item in history]
        self.story.promise(
            "its history tells of two leases, one lost, and of one success",
            (events.count("Leased"), events.count("LeaseExpired"), events.count("Succeeded")) == (2, 1, 1),
        )

    def _verify_log(self) -> None:
        self.story.chapter("The log, folded anew and compared; and its export, checked by its hash chain")
        export = self.folder / "audit.ndjson"
        for command in (
            ("verify", "--server", self.server),
            ("audit", "export", "--server", self.server, "--file", str(export)),
            ("audit", "verify", str(export)),
        ):
            self.story.say(f"$ {shown(command)}")
            self.story.show(self.processes.run(*command))
        lines = export.read_bytes().splitlines()
        forged = self.folder / "forged.ndjson"
        victim = next(number for number, line in enumerate(lines) if b"hung up" in line)
        lines[victim] = lines[victim].replace(b"hung up", b"was off", 1)
        forged.write_bytes(b"\n".join(lines) + b"\n")
        self.story.promise("one changed word in the export is found out", self._is_refused(forged))

    def _is_refused(self, file: Path) -> bool:
        try:
            self.processes.run("audit", "verify", str(file))
        except DemoFailed:
            return True
        return False

    def summary(self) -> None:
        self.story.chapter("Summary")
        counts = self.client.counts()
        states = ", ".join(f"{number} {state}" for state, number in sorted(counts["states"].items()))
        self.story.say(f"{counts['total']} jobs: {states}")
        lines = len((self.folder / "audit.ndjson").read_bytes().splitlines()) - 2
        self.story.say(f"{lines} lines on the log, all in {self.folder}/data")
        self.story.say(
            f"thumbnails in {self.folder}/thumbnails, logs beside them; delete the folder when done"
        )


def history_table(history: list[Job]) -> Iterator[str]:
    """A job's history for people; of many lines of progress in a row the first and the last."""
    yield f"{'position':<10}{'at':<14}{'event':<14}{'by':<22}what"
    yield "-" * 100
    for index, item in enumerate(history):
        around = [other["type"] for other in history[max(0, index - 1) : index + 2]]
        if around == ["Progressed"] * 3:
            if history[index - 2]["type"] != "Progressed":
                yield f"{'':<24}..."
            continue
        yield f"{item['position']:<10}{item['at'][11:23]:<14}{item['type']:<14}{item['actor']:<22}{_what(item)}"


def _what(item: Job) -> str:
    match item["type"]:
        case "Enqueued":
            return f"{item['job_type']}, priority {item['priority']}"
        case "Leased":
            return f"attempt {item['attempt']}, lease {item['id']}"
        case "Progressed":
            saved = " (checkpoint saved)" if "checkpoint" in item else ""
            return f"{item.get('message', '')}{saved}"
        case "LeaseExpired":
            return f"lease {item['lease']}: {item.get('reason', 'silent')}"
        case "Succeeded":
            return f"lease {item['lease']}"
        case _:
            return ""


def _bar(percent: float, width: int = 10) -> str:
    filled = round(percent / 100 * width)
    return f"[{'#' * filled}{'.' * (width - filled)}] {percent:3.0f} %"


def _attempts(job: Job) -> str:
    return f" ({job['attempt']}/{job['max_attempts']})" if job["attempt"] > 1 else ""


def main() -> int:
    """Tell the story; 0 when every promise was kept."""
    story = Story()
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    print("Penstock: from a producer over the log through a worker to a history that can be replayed.")
    environment = {"PENSTOCK_SERVER": server, "NO_COLOR": "1"}
    try:
        with Processes(folder, environment) as processes, Client(server, patience_ms=5_000) as client:
            demo = Demo(folder, port, processes, client, story)
            demo.run()
            demo.summary()
            stopping = time.monotonic()
        story.say(f"server and worker stopped in {time.monotonic() - stopping:.1f} s")
    except (DemoFailed, PenstockError) as error:
        story.broken.append(str(error))
    except KeyboardInterrupt:
        story.broken.append("interrupted")
    return _ending(story, folder)


def _ending(story: Story, folder: Path) -> int:
    if story.broken:
        print(f"\nNOT as promised (after {story.elapsed_s:.0f} s; logs are in {folder}):")
        for text in story.broken:
            print(f"  - {text}")
        return 1
    print(f"\nAll {story.kept} promises kept in {story.elapsed_s:.0f} s. To look around in what is left:")
    print(f"  .venv/bin/penstock dev --data {folder}/data     then open http://127.0.0.1:8700/docs, or")
    print("  .venv/bin/penstock jobs list --state dead")
    print("To write jobs of your own: README.md, Quickstart.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
