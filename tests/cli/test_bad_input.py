"""Whatever is typed: a message and an exit code, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("nonsense", 2, "nonsense"),
        ("--nonsense", 2, "nonsense"),
        ("--output xml counts", 2, "xml"),
        ("--log-level loud counts", 2, "--log-level"),
        ("--server nowhere counts", 2, "--server: must be a URL"),
        ("--config nope.toml counts", 2, "nope.toml cannot be read"),
        ("counts", 6, "penstock dev"),
        ("queues", 6, "does not answer"),
        ("workers", 6, "does not answer"),
        ("jobs list", 6, "does not answer"),
        ("jobs list --limit 0", 2, "limit"),
        ("jobs get a", 6, "does not answer"),
        ("jobs get ..", 4, "is not a job id"),
        ("jobs history a", 6, "does not answer"),
        ("jobs", 2, ""),
        ("enqueue", 2, "type is missing"),
        ("enqueue t {", 2, "payload is not JSON"),
        ("enqueue t - ", 2, "payload is not JSON"),
        ("enqueue t 1", 6, "does not answer"),
        ("enqueue --bulk", 0, ""),
        ("enqueue --bulk --id a", 2, "--id"),
        ("enqueue t --delay-ms x", 2, "delay-ms"),
        ("claims sweep --older-than 5m", 2, "--older-than: must be 1h to 3650d"),
        ("claims sweep --older-than 99999d", 2, "--older-than: must be 1h to 3650d"),
        ("claims sweep --older-than never", 2, "--older-than: give an age"),
        ("log tail", 6, "does not answer"),
        ("log tail --data nope", 4, "there is no log in nope"),
        ("log tail --log redis://x", 2, "--log: must be"),
        ("log tail -n -1", 2, "lines"),
        ("log copy --from redis://x --to embedded:x", 2, "'--from'"),
        ("log copy --from embedded:x --to kafka://x", 2, "'--to'"),
        ("log compare --a folder:nope --b nope", 2, "'--b'"),
        ("log inspect x", 2, "is not a position"),
        ("log inspect 0:0", 6, "does not answer"),
        ("log inspect 0:0:0 --data nope", 4, "there is no log"),
        ("verify", 6, "does not answer"),
        ("verify --data nope", 4, "there is no log"),
        ("projection rebuild --data nope", 4, "there is no log"),
        ("audit export", 6, "does not answer"),
        ("archive verify --archive nope", 4, "There is no folder 'nope'"),
        ("archive list --archive nope", 4, "There is no folder 'nope'"),
        ("audit export --since yesterday", 2, "RFC 3339"),
        ("audit export --until 2026-01-01T00:00:00", 2, "no time zone"),
        ("audit export --job a --partition 1", 2, "give one of them"),
        ("audit verify nope.ndjson", 4, "There is no file 'nope.ndjson'"),
        ("audit verify -", 7, "line"),
        ("quarantine list", 6, "does not answer"),
        ("quarantine redrive x", 2, "is not a position"),
        ("quarantine redrive 0:0:0 --edit nope", 1, "nope: No such file"),
        ("dev --port 99999", 2, "--port"),
        ("dev --log x", 2, "--log"),
        ("dev --temp --data d", 2, "give one of them"),
        ("dev --temp --app nope", 2, "nope"),
        ("dev --temp --app broken.py", 2, "broken.py"),
        ("api", 2, "needs a cluster"),
        ("orchestrator", 2, "needs a cluster"),
        ("projection", 2, "needs a cluster"),
        ("worker", 2, "needs handlers"),
        ("worker --app nope --server http://127.0.0.1:9", 2, "nope"),
        ("worker --app x --log embedded:d", 2, "needs a cluster"),
    ],
)
def test_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, message: str):
    monkeypatch.setenv("PENSTOCK_SERVER", NOWHERE)
    Path("broken.py").write_text("raise ValueError('broken')")
    result = run(*arguments.split())
    assert (result.code, message in result.out + result.err) == (code, True), result
    assert "Traceback" not in result.err
    if code != 0 and code != 2:
        assert result.err.startswith("penstock: ")


def test_dev_on_a_cluster_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_LOG", "kafka://a:1")
    result = run("dev")
    assert (result.code, "run the roles alone" in result.err) == (2, True)


def test_a_bug_is_a_message_too(run: Run, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("penstock.cli.job_commands.cli_of", broken)
    result = run("counts")
    assert result.code == 1
    assert "unexpected error: RuntimeError: a bug" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("argument", ["--version", "--help", "-h"])
def test_help_and_version(run: Run, argument: str):
    result = run(argument)
    assert result.code == 0
    assert "penstock" in result.out
