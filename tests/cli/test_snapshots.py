"""``penstock snapshot``, and a service that keeps snapshots and comes back from one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from penstock.client.http import Client
from tests.cli.conftest import Dev, Run
from tests.waiting import wait_for

JOBS = 12


@pytest.fixture
def filled(run: Run, tmp_path: Path) -> Path:
    """The data folder of a stopped service with some jobs, none of them running."""
    dev = Dev(tmp_path)
    try:
        with Client(dev.server) as client:
            for number in range(JOBS):
                client.enqueue("nobody-runs-this", id=f"j{number}")
    finally:
        assert dev.stop()[0] == 0
    return dev.data


def offsets(found: dict[str, list[dict[str, object]]]) -> dict[object, object]:
    return {row["partition"]: row["next_offset"] for row in found["snapshots"]}


def test_taken_lost_and_restored_by_hand(
    run: Run, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_SNAPSHOTS", "snapshots")
    monkeypatch.setenv("PENSTOCK_DATA", str(filled))
    for asked in ("list", "restore", "prune"):
        refused = run("snapshot", asked)
        assert (refused.code, "There is no folder 'snapshots'" in refused.err) == (4, True)
    assert not (tmp_path / "snapshots").exists()
    Path("snapshots").mkdir()
    assert run("snapshot", "list").out == "there are no snapshots\n"
    assert run("snapshot", "restore").code == 4
    taken = run("snapshot", "create", "--output", "json")
    assert (taken.code, {row["outcome"] for row in taken.json["snapshots"]}) == (0, {"taken"})
    assert {row["kind"] for row in taken.json["snapshots"]} == {"node"}
    listed = run("snapshot", "list", "--output", "json")
    assert offsets(listed.json) == offsets(taken.json)
    assert {row["outcome"] for row in listed.json["snapshots"]} == {"latest"}
    for row in taken.json["snapshots"]:
        assert row["snapshot"] in run("snapshot", "list").out

    kept = run("snapshot", "restore", "--output", "json").json["snapshots"]
    assert {row["outcome"] for row in kept} == {"kept"}
    assert all("and what is here at" in row["reason"] for row in kept)
    shutil.rmtree(filled / "node")
    restored = run("snapshot", "restore", "--kind", "node", "--output", "json")
    assert (restored.code, {row["outcome"] for row in restored.json["snapshots"]}) == (0, {"restored"})
    assert offsets(restored.json) == offsets(taken.json)
    verified = run("verify", "--output", "json")
    assert (verified.code, verified.json["ok"]) == (0, True)
    assert any(proof["compared"] for proof in verified.json["partitions"])

    one = taken.json["snapshots"][0]
    named = ("--kind", "node", "--partition", str(one["partition"]), "--snapshot", one["snapshot"])
    assert run("snapshot", "restore", *named, "--output", "json").json["snapshots"][0]["outcome"] == "kept"
    again = run("snapshot", "restore", *named, "--force", "--output", "json")
    assert again.json["snapshots"][0]["outcome"] == "restored"
    assert run("snapshot", "restore", *named[:-1], "0-none", "--force").code == 4

    assert run("snapshot", "create").code == 0
    twice = run("snapshot", "list", "--output", "json").json["snapshots"]
    assert len(twice) == 2 * len(taken.json["snapshots"])
    assert "node" in run("snapshot", "prune", "--keep", "1").out
    assert len(run("snapshot", "list", "--output", "json").json["snapshots"]) == len(taken.json["snapshots"])

    for manifest in Path("snapshots").rglob("*.json"):
        manifest.write_bytes(manifest.read_bytes().replace(b'"kind"', b'"Kind"'))
    assert {row["outcome"] for row in run("snapshot", "list", "--output", "json").json["snapshots"]} == {
        "damaged"
    }
    shutil.rmtree(filled / "node")
    refused = run("snapshot", "restore")
    assert (refused.code, "no snapshot fits" in refused.err) == (4, True)
    gone = run("snapshot", "prune", "--kind", "node", "--all", "--output", "json").json["partitions"]
    assert sum(row["files"] for row in gone) > 0
    assert not [path for path in Path("snapshots").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("list",), 2, "PENSTOCK_SNAPSHOTS"),
        (("create",), 2, "PENSTOCK_SNAPSHOTS"),
        (("create", "--snapshots", "s"), 4, "there is no log"),
        (("list", "--snapshots", "ftp://x"), 2, "no store of objects"),
        (("list", "--kind", "api", "--snapshots", "s"), 2, "api"),
        (("prune", "--all", "--snapshots", "s"), 2, "--all needs a --kind"),
        (("prune", "--all", "--kind", "node", "--keep", "2", "--snapshots", "s"), 2, "no --keep"),
        (("prune", "--keep", "0", "--snapshots", "s"), 2, "keep"),
        (("restore", "--snapshot", "x", "--kind", "node", "--snapshots", "s"), 2, "--partition"),
    ],
)
def test_what_cannot_be_done_is_said(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run("snapshot", *arguments)
    assert (result.code, message in result.err, "Traceback" in result.err) == (code, True, False), result.err


def test_what_is_not_there(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SNAPSHOTS", "snapshots")
    monkeypatch.setenv("PENSTOCK_DATA", str(filled))
    assert run("snapshot", "create", "--kind", "projection").code == 4
    far = run("snapshot", "create", "--partition", "9")
    assert (far.code, "partitions 0 to" in far.err) == (2, True)


def test_a_service_keeps_them_and_comes_back_from_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "penstock.toml").write_text('snapshots = "snapshots"\nsnapshot_every_s = 1\n')
    dev = Dev(tmp_path)
    try:
        with Client(dev.server) as client:
            for number in range(JOBS):
                client.enqueue("nobody-runs-this", id=f"j{number}")
            positions = [client.get(f"j{number}")["position"] for number in range(JOBS)]
        used = {int(position.partition(":")[0]) for position in positions}

        def all_there() -> bool:
            found = run("snapshot", "list", "--output", "json").json["snapshots"]
            return {row["partition"] for row in found} >= used

        wait_for("every partition has a snapshot", lambda: all_there() or None)
        in_use = run("snapshot", "create", "--data", dev.data)
        assert (in_use.code, "in use" in in_use.err) == (3, True)
    finally:
        assert dev.stop()[0] == 0
    shutil.rmtree(dev.data / "node")
    again = Dev(tmp_path)
    try:
        with Client(again.server) as client:
            assert {client.get(f"j{number}")["state"] for number in range(JOBS)} == {"ready"}
    finally:
        code, errors = again.stop()
    assert code == 0
    assert "restored node" in errors
