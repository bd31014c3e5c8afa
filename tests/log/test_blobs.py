"""Stores of objects: one suite for a folder, memory and a bucket, and what only a folder or a bucket can do wrong."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from pathlib import Path

import pytest

from penstock.log import blobs as blobs_module
from penstock.log.blobs import Blobs, open_blobs
from penstock.schemas.errors import BlobMissing, BlobsUnavailable, SettingsInvalid
from tests.s3_server import s3_environment


@pytest.fixture(params=["folder", "file-url", "memory", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "bucket":
        return open_blobs(request.getfixturevalue("s3_url"))
    folder = tmp_path / "a store"
    urls = {
        "folder": str(folder),
        "file-url": f"file://{tmp_path}/a%20store",
        "memory": f"memory://{uuid.uuid4()}",
    }
    return open_blobs(urls[request.param])


async def test_what_is_put_can_be_had_again(blobs: Blobs) -> None:
    await blobs.put("a/b/c.json", b"one")
    assert await blobs.get("a/b/c.json") == b"one"
    await blobs.put("a/b/c.json", b"")
    assert await blobs.get("a/b/c.json") == b""


async def test_files_of_any_size(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "_CHUNK_BYTES", 5 * 1024 * 1024)
    for size_bytes in (0, 1, 12_000_001):
        source, copy = tmp_path / "source", tmp_path / f"copy-{size_bytes}"
        source.write_bytes(os.urandom(size_bytes))
        await blobs.put_file("files/some", source)
        assert await blobs.get_file("files/some", copy) == size_bytes
        assert copy.read_bytes() == source.read_bytes() == await blobs.get("files/some")
        with pytest.raises(FileExistsError):
            await blobs.get_file("files/some", copy)


async def test_a_list_takes_whole_segments(blobs: Blobs) -> None:
    before_ms = time.time_ns() // 1_000_000
    for key in ("a/b/c", "a/bc", "a/b/d/e", "z"):
        await blobs.put(key, key.encode())
    assert [info.key for info in await blobs.list()] == ["a/b/c", "a/b/d/e", "a/bc", "z"]
    [first, second] = await blobs.list("a/b")
    assert (first.key, first.size_bytes, second.key) == ("a/b/c", 5, "a/b/d/e")
    assert abs(first.modified_ms - before_ms) < 60_000
    assert await blobs.list("nothing/here") == []


async def test_what_is_not_there(blobs: Blobs, tmp_path: Path) -> None:
    await blobs.put("a/b", b"1")
    for key in ("a/c", "a", "b"):
        with pytest.raises(BlobMissing, match=f"no {key} in"):
            await blobs.get(key)
        with pytest.raises(BlobMissing):
            await blobs.get_file(key, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


async def test_deleting(blobs: Blobs) -> None:
    for key in ("a/1", "a/2", "a/3"):
        await blobs.put(key, b"")
    await blobs.delete(["a/none", "a/1", "a/3", "a/1"])
    assert [info.key for info in await blobs.list()] == ["a/2"]
    await blobs.delete(["a/2"])
    assert await blobs.list() == []
    await blobs.put("a/2", b"again")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a/\n", "ü"])
async def test_keys_that_are_none(blobs: Blobs, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        await blobs.put(key, b"")
    with pytest.raises(ValueError, match="no key"):
        await blobs.get(key)


async def test_many_at_once(blobs: Blobs) -> None:
    await asyncio.gather(*(blobs.put(f"n/{number}", str(number).encode()) for number in range(200)))
    found = await asyncio.gather(*(blobs.get(f"n/{number}") for number in range(200)))
    assert found == [str(number).encode() for number in range(200)]
    assert len(await blobs.list("n")) == 200


async def test_an_object_replaced_while_it_is_read_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_module, "_CHUNK_BYTES", 4)
    blobs = open_blobs(str(tmp_path / "store"))
    await blobs.put("a", b"11112222")
    whole = blobs_module._outside
    written = 0

    async def then_replace(work):
        nonlocal written
        await whole(work)
        written += 1
        if written == 1:
            await blobs.put("a", b"33334444")

    monkeypatch.setattr(blobs_module, "_outside", then_replace)
    with pytest.raises(BlobsUnavailable):
        await blobs.get_file("a", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_memory_is_one_store_for_one_name() -> None:
    name = uuid.uuid4()
    await open_blobs(f"memory://{name}").put("a", b"1")
    assert await open_blobs(f"memory://{name}").get("a") == b"1"
    assert await open_blobs(f"memory://{name}-other").list() == []


async def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blobs = open_blobs("snapshots/of mine")
    monkeypatch.chdir("/")
    await blobs.put("a", b"1")
    assert (tmp_path / "snapshots/of mine/a").read_bytes() == b"1"


async def test_what_a_dead_upload_left_is_not_listed_and_cleared_when_old(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path))
    await blobs.put("a/b", b"1")
    left, young = tmp_path / "a/b#1", tmp_path / "a/c#12"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert [info.key for info in await blobs.list()] == ["a/b"]
    assert await blobs.clear_staged() == 1
    assert (left.exists(), young.exists(), (tmp_path / "a/b").exists()) == (False, True, True)


async def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BlobsUnavailable, match="cannot be used"):
        open_blobs(str(tmp_path / "file" / "store"))
    blobs = open_blobs(str(tmp_path / "store"))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(BlobsUnavailable, match="did not write a/b"):
        await blobs.put("a/b", b"")


async def test_a_file_that_cannot_be_written_is_not_the_stores_fault(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await blobs.put("a", b"1")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        await blobs.get_file("a", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(FileNotFoundError):
        await blobs.put_file("b", tmp_path / "none")


async def test_nothing_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    blobs = open_blobs(str(tmp_path), timeout_ms=20)
    for name in ("put_async", "get_async", "head_async", "delete_async"):
        monkeypatch.setattr(blobs_module.obstore, name, silent)
    source = tmp_path / "source"
    source.write_bytes(b"1")
    calls = (
        blobs.put("a", b""),
        blobs.get("a"),
        blobs.put_file("a", source),
        blobs.get_file("a", tmp_path / "copy"),
        blobs.delete(["a"]),
    )
    for call in calls:
        with pytest.raises(BlobsUnavailable, match="in time"):
            await call


async def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(blobs_module, "_RETRIES", {"max_retries": 0})
    blobs = open_blobs("s3://bucket/some/prefix")
    for call in (blobs.put("a", b""), blobs.get("a"), blobs.list()):
        with pytest.raises(BlobsUnavailable, match=r"^s3://bucket/some/prefix did not [^\n]+$"):
            await call


@pytest.mark.parametrize(
    "url", ["", "  ", "ftp://host/path", "s3://", "s3:///nothing", "file://host/path", "http://host/path"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(SettingsInvalid):
        open_blobs(url)
