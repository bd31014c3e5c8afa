"""The README does what it says: its quickstart is pasted line by line into an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.settings import ENV_PREFIX, Settings
from penstock.workers.loading import load_app
from tests.acceptance.processes import ROOT, Stack, http, penstock, understood
from tests.waiting import free_port, wait_for

README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = "pip install penstock"


def blocks(language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(script: str) -> list[str]:
    """What a shell takes as one command each; here-documents whole."""
    found: list[str] = []
    end = ""
    for line in script.splitlines():
        if end:
            found[-1] += f"\n{line}"
            end = "" if line == end else end
        elif line.strip():
            found.append(line)
            here = re.search(r"<<'?(\w+)'?", line)
            end = here[1] if here else ""
    return found


@pytest.mark.slow
def test_the_quickstart_works_line_by_line_in_an_empty_folder(tmp_path: Path) -> None:
    (script,) = blocks("bash")
    first, *rest = commands(script)
    # What the first line would install is what is tested.
    assert first == INSTALL
    port = str(free_port())
    folder = tmp_path / "empty"
    folder.mkdir()
    path = f"{Path(sys.executable).parent}:{_with_curl(tmp_path / 'bin')}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment |= {
        "PATH": path,
        "PENSTOCK_PORT": port,
        "PENSTOCK_SERVER": f"http://127.0.0.1:{port}",
        "NO_COLOR": "1",
    }
    lines = [f'{line}\ncode=$?; echo; echo "== $code"; [ $code = 0 ] || exit 1' for line in rest]
    # Whatever happens, what was started in the background is ended with the shell.
    text = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + "\n".join(lines) + "\nwait\n"
    done = subprocess.run(
        ["bash", "-c", text.replace("127.0.0.1:8700", f"127.0.0.1:{port}")],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.stdout.count("== 0") == len(rest), output
    assert "== 1" not in done.stdout, output
    assert "Hello, Ada!" in done.stdout
    assert "Traceback" not in output
    for seen in ("greeting-1", '"name":"Alan"', "Enqueued", "OK"):
        assert seen in done.stdout, f"{seen} is not in\n{output}"
    assert (folder / "penstock-data").is_dir()


@pytest.mark.slow
def test_the_handler_file_and_the_typed_call_work(tmp_path: Path) -> None:
    handler, call = blocks("python")
    (tmp_path / "handlers.py").write_text(handler)
    producer = f"import asyncio\nfrom handlers import *\nasync def main():\n    {call.strip()}\n    print(job['id'])\n"
    (tmp_path / "producer.py").write_text(producer + "asyncio.run(main())\n")
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    with Stack(tmp_path) as stack:
        stack.add("dev", ("dev", "--app", "handlers.py", "--port", str(port)), ready_url=f"{server}/readyz")
        stack.start()
        environment = {**os.environ, "PENSTOCK_SERVER": server}
        done = subprocess.run(
            [sys.executable, "producer.py"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.strip()
        job = wait_for("the job is done", lambda: _done(server, job_id))
        assert (job["state"], job["result"], job["checkpoint"]) == ("succeeded", {"customers": 2}, 2)
        assert job["priority"] == "high"
        empty = penstock(
            "enqueue", "import_customers", '{"customers": [" "]}', "--wait", "--output", "json",
            folder=tmp_path, environment={"PENSTOCK_SERVER": server},
        )  # fmt: skip
        assert empty.returncode == 1
        failed = json.loads(empty.stdout)
        assert (failed["state"], failed["attempt"], failed["errors"][0]["message"]) == (
            "dead",
            1,
            "customer 1 has no name",
        )


def _with_curl(folder: Path) -> Path:
    """A folder with as much of curl as the README needs, where the machine has none."""
    folder.mkdir()
    if shutil.which("curl") is None:
        file = folder / "curl"
        file.write_text(f"#!{sys.executable}\n{CURL}")
        file.chmod(0o755)
    return folder


CURL = """
import sys, time, urllib.request
arguments = sys.argv[1:]
url = next(word for word in arguments if word.startswith("http"))
data = arguments[arguments.index("-d") + 1].encode() if "-d" in arguments else None
headers = {"Content-Type": "application/json"} if "-H" in arguments else {}
for _ in range(30 if "--retry" in arguments else 1):
    try:
        print(urllib.request.urlopen(urllib.request.Request(url, data, headers)).read().decode(), end="")
        break
    except ConnectionError:
        time.sleep(1)
    except urllib.error.URLError:
        time.sleep(1)
else:
    sys.exit(7)
"""


def _done(server: str, job_id: str) -> dict[str, object] | None:
    job = http("GET", f"{server}/api/v1/jobs/{job_id}").json
    return job if job["state"] == "succeeded" else None


def test_the_quickstart_s_handlers_are_the_example_s() -> None:
    (script,) = blocks("bash")
    handlers = re.search(r"cat > tasks.py <<'END'\n(.*?)END", script, re.DOTALL)
    assert handlers is not None
    example = (ROOT / "examples" / "quickstart" / "tasks.py").read_text(encoding="utf-8")
    code = [line for line in example.splitlines() if line.strip() and not line.startswith('"""')]
    assert [line for line in handlers[1].splitlines() if line.strip()] == code
    assert [task.name for task in load_app(str(ROOT / "examples" / "quickstart" / "tasks.py"))] == ["hello"]


def test_every_command_of_the_table_exists() -> None:
    table = re.search(r"## The command line\n(.*?)\n## ", README, re.DOTALL)
    assert table is not None
    for row in re.findall(r"^\| (`penstock .*?) \|[^|`]*\|?$", table[1].replace("\\|", "/"), re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        words = first.removeprefix("penstock ").split()
        groups = [words] + [
            [words[0], *other.split()]
            if words[0]
            in {"jobs", "log", "audit", "operations", "quarantine", "snapshot", "archive", "rules"}
            else other.split()
            for other in others
        ]
        for group in groups:
            # `log inspect` after `log tail` names its group again.
            plain = [word for word in group if re.fullmatch(r"[a-z]+", word)]
            plain = plain[1:] if plain[:1] == plain[1:2] else plain
            assert understood(plain), plain


def test_every_setting_exists() -> None:
    for text in (README, (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")):
        for variable in re.findall(rf"{ENV_PREFIX}([A-Z_]+)\b", text):
            name = variable.lower()
            assert name in Settings.model_fields or name in {"config"}, variable


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
