"""`make demo`: Penstock at work on this machine, with nothing installed but Python packages.

A server and a worker are started as processes of their own; the worker is killed in the middle of its work, and another
one goes on where it was. The demonstration checks what it promises, and exits with 1 when anything did not happen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from material import Sales, draw_pictures, write_sales
from processes import DemoFailed, Processes, free_port, shown
from tasks import Picture, SalesTable, charge_card, remind, sales_report, send_mail, thumbnails

from penstock.client.http import Client
from penstock.schemas.errors import PenstockError

ROWS = 20_000
KILL_AT_ROW = 8_000
WIDTHS = [1280, 640, 320, 160]
DELAY_MS = 6_000
POLL_S = 0.1
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
        command = ("worker", "--app", str(TASKS), "--server", self.server, "--name", WORKER, "--concurrency", "3")
        self.story.say(f"$ {shown((*command[:2], 'examples/demo/tasks.py', *command[3:]))} &")
        worker = self.processes.start("worker", *command)
        return worker

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
        quickly = {"kind": "exponential", "base_ms": 400, "jitter": 0.0}
        ids["mail"] = send_mail.enqueue_sync("ada@example.org", client=client, backoff=quickly)["id"]
        ids["card"] = charge_card.enqueue_sync("4000-0002", client=client, max_attempts=3, backoff=quickly)["id"]
        ids["reminder"] = remind.enqueue_sync("tea is ready", client=client, delay_ms=DELAY_MS)["id"]
        self.story.say(f"1 report over {ROWS:,} rows, {len(pictures)} pictures to make {len(WIDTHS)} thumbnails of each")
        self.story.say("1 mail that fails twice, 1 payment that always fails (3 attempts)")
        self.story.say(f"1 reminder with a delay of {DELAY_MS / 1000:.0f} s")

    def _watch_until_killed(self) -> None:
        self.story.chapter(f"At work, until row {KILL_AT_ROW:,} of the report")

        def far_enough(jobs: dict[str, Job]) -> bool:
            rows = (jobs[self._ids["report"]]["checkpoint"] or {}).get("rows", 0)
            return rows >= KILL_AT_ROW and jobs[self._ids["mail"]]["state"] == "succeeded"

        jobs = self._watch(far_enough)
        held = [job for job in jobs.values() if job["state"] == "active"]
        self.story.promise("the worker is killed while it holds jobs", held)
        self.processes.kill(self.worker)
        kinds = ", ".join(sorted(job["type"] for job in held))
        self.story.say(f"SIGKILL to the worker; it held {len(held)} jobs: {kinds}")
        self.held = [job["id"] for job in held]

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
                raise DemoFailed(f"nothing more happens; the worker says:\n{self.processes.log_tail('worker')}")
            time.sleep(POLL_S)

    def _line(self, jobs: dict[str, Job]) -> str:
        report = jobs[self._ids["report"]]
        progress = report["progress"] or {}
        pictures = sum(jobs[job_id]["state"] == "succeeded" for job_id in self._pictures)
        told = (progress.get("message") or report["state"]) if report["state"] == "active" else report["state"]
        others = "  ".join(
            f"{name} {jobs[self._ids[name]]['state']}{_attempts(jobs[self._ids[name]])}"
            for name in ("mail", "card", "reminder")
        )
        return f"report {_bar(progress.get('percent') or 0)} {told:<32} pictures {pictures:>2}/{len(self._pictures)}  {others}"

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
        rescued = [self.client.get(job_id) for job_id in self.held]
        promise(
            f"all {len(rescued)} jobs of the killed worker were rescued in a second attempt",
            all(job["state"] == "succeeded" and job["attempt"] >= 2 for job in rescued),
        )
        files = [path for path in (self.folder / "thumbnails").iterdir() if path.suffix == ".jpg"]
        promise(
            f"{len(files)} thumbnails of {len(pictures)} pictures are on the disk",
            len(files) == len(pictures) * len(WIDTHS) and all(job["state"] == "succeeded" for job in pictures),
        )
        mail, card, reminder = jobs["mail"], jobs["card"], jobs["reminder"]
        promise(
            f"the mail failed {len(mail['errors'])} times and was then {mail['result']}",
            mail["state"] == "succeeded" and len(mail["errors"]) == 2,
        )
        promise(
            f"the payment is in the dead letters after {card['attempt']} attempts: {card['errors'][-1]['message']}",
            card["state"] == "dead" and card["attempt"] == 3,
        )
        promise(
            f"the reminder waited for {reminder['scheduled_at'][11:23]} and started at {reminder['started_at'][11:23]}",
            reminder["state"] == "succeeded" and reminder["started_at"] >= reminder["scheduled_at"],
        )

    def _show_history(self) -> None:
        command = ("jobs", "history", self._ids["mail"])
        self.story.chapter(f"$ {shown(command)}")
        self.story.show(self.processes.run(*command))
        events = [item["type"] for item in self.client.history(self._ids["mail"])]
        self.story.promise(
            "its history tells of two failures and a success",
            (events.count("Failed"), events.count("Succeeded"), events.count("Leased")) == (2, 1, 3),
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
        self.story.say(f"thumbnails are in {self.folder}/thumbnails, logs beside them; delete the folder when done")


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
    print("Penstock: a job goes from a producer over the log through a worker to a history that can be replayed.")
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
