"""Whole objects by key, kept outside the log: snapshots and archives live here.

:func:`open_blobs` opens a folder, an S3-like bucket or, for tests, memory. An object appears whole or not at all, and
is on the disk of a folder when :meth:`Blobs.put` returns. The store behind it stages uploads and renames them, so what
a crash leaves behind is never listed and never read. Every call ends: each has a time limit that grows with its size.

Keys are segments joined by ``/``. :meth:`Blobs.list` takes whole leading segments: ``a/b`` finds ``a/b/c``, and not
``a/bc``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

import msgspec
import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, from_url

from penstock.schemas.errors import BlobMissing, BlobsUnavailable, NotFound, SettingsInvalid

if TYPE_CHECKING:
    # Shapes that exist for type checkers only.
    from obstore import GetOptions, ListStream, ObjectMeta
    from obstore.store import ObjectStore, RetryConfig

_MIB = 1024 * 1024
_CHUNK_BYTES = 8 * _MIB
_CONNECTIONS = 4
_STAGED = re.compile(r"#\d+$")
"""How the library names a file until it is whole."""

_REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_list = cast("Callable[..., ListStream[Sequence[ObjectMeta]]]", obstore.list)

_in_memory: dict[str, MemoryStore] = {}


class BlobInfo(msgspec.Struct, frozen=True):
    """One object as listed; ``modified_ms`` is the store's clock."""

    key: str
    size_bytes: int
    modified_ms: int


def open_blobs(
    url: str, *, must_exist: bool = False, timeout_ms: int = 60_000, slowest_bytes_per_s: int = _MIB
) -> Blobs:
    """Open a folder's path, ``file://``, ``s3://bucket/prefix`` or ``memory://name`` (one a name and process).

    Credentials, endpoint and region of a bucket come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ALLOW_HTTP``, ...); nothing is asked of it yet. A folder is made when missing, unless it
    ``must_exist``. A call may take ``timeout_ms`` and what its bytes need at ``slowest_bytes_per_s``.

    Raises:
        SettingsInvalid: no such kind of store, or its options are wrong.
        BlobsUnavailable: the folder cannot be made.
        NotFound: it must exist, and does not.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    folder: Path | None = None
    try:
        if scheme == "memory":
            store: ObjectStore = _in_memory.setdefault(url, MemoryStore())
        elif scheme in ("", "file"):
            folder = _folder(url, scheme)
            if must_exist and not folder.is_dir():
                raise NotFound(f"There is no folder {url!r}.")
            folder.mkdir(parents=True, exist_ok=True)
            store = LocalStore(folder)
        elif scheme in _REMOTE_SCHEMES:
            # No options of the client here: they would hide those of the environment. Its own time limits are 5 s to
            # connect and 30 s a request.
            store = from_url(url, retry_config=_RETRIES)
        else:
            raise SettingsInvalid(
                f"{url!r} is no store of objects: give a folder, s3://bucket/prefix or memory://name."
            )
    except OSError as error:
        raise BlobsUnavailable(f"The folder {url!r} cannot be used: {error}.") from error
    except (BaseError, ValueError) as error:
        raise SettingsInvalid(f"The store {url!r} cannot be opened: {_reason(error)}") from error
    return Blobs(store, url, folder, timeout_ms=timeout_ms, slowest_bytes_per_s=slowest_bytes_per_s)


def _folder(url: str, scheme: str) -> Path:
    if not scheme:
        if not url.strip():
            raise SettingsInvalid("The store of objects has no address.")
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise SettingsInvalid(f"{url!r} names no folder of this machine: write file:///folder.")
    return Path(unquote(parts.path))


class Blobs:
    """Objects below one address. Safe for concurrent use by tasks of one event loop; needs no closing."""

    def __init__(
        self, store: ObjectStore, url: str, folder: Path | None, *, timeout_ms: int, slowest_bytes_per_s: int
    ) -> None:
        self.url = url
        self._store = store
        self._folder = folder
        self._timeout_ms = timeout_ms
        self._slowest = slowest_bytes_per_s

    async def put(self, key: str, data: bytes) -> None:
        """Write or replace an object: readers see the old one or the new one, whole.

        Raises:
            BlobsUnavailable: not written, or its outcome is not known; the old object may still stand.
        """
        _check_key(key)
        async with self._call(f"write {key}", len(data)):
            await obstore.put_async(self._store, key, data, max_concurrency=_CONNECTIONS)
            await self._sync(key)

    async def put_file(self, key: str, path: Path) -> None:
        """As :meth:`put`, with what the file holds; it must not change meanwhile.

        Raises:
            BlobsUnavailable: not written, or its outcome is not known.
            OSError: the file cannot be read.
        """
        _check_key(key)
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        async with self._call(f"write {key}", size_bytes):
            await obstore.put_async(
                self._store, key, path, chunk_size=_CHUNK_BYTES, max_concurrency=_CONNECTIONS
            )
            await self._sync(key)

    async def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            BlobMissing: there is none.
            BlobsUnavailable: the store does not answer in time.
        """
        _check_key(key)
        async with self._call(f"read {key}", 0) as limit:
            result = await obstore.get_async(self._store, key)
            self._allow(limit, result.meta["size"])
            return bytes(await result.bytes_async())

    async def get_file(self, key: str, path: Path) -> int:
        """Write the object to ``path``, which must not exist, in pieces; returns its bytes. What fails leaves no file.

        Raises:
            BlobMissing: there is none.
            BlobsUnavailable: the store does not answer in time.
            OSError: the file cannot be written.
        """
        _check_key(key)
        # Opened anew for each piece: a file handed out of a thread would be nobody's if the wait for it is cancelled.
        await asyncio.to_thread(path.touch, exist_ok=False)
        try:
            async with self._call(f"read {key}", 0) as limit:
                meta = await obstore.head_async(self._store, key)
                size_bytes, same = meta["size"], meta["e_tag"]
                self._allow(limit, size_bytes)
                # Piece by piece: a request's own time limit would otherwise be one for the whole object.
                for start in range(0, size_bytes, _CHUNK_BYTES):
                    end = min(start + _CHUNK_BYTES, size_bytes)
                    options: GetOptions = {"range": (start, end), "if_match": same}
                    piece = await obstore.get_async(self._store, key, options=options)
                    data = bytes(await piece.bytes_async())
                    await _outside(partial(_append, path, data))
                await _outside(partial(_sync, path))
                return size_bytes
        except BaseException:
            # No await here: a caller that is being cancelled gets no second chance to tidy.
            os.unlink(path)
            raise

    async def list(self, prefix: str = "") -> list[BlobInfo]:
        """Every object below the leading segments ``prefix``, by key.

        Raises:
            BlobsUnavailable: the store does not answer in time.
        """
        if prefix:
            _check_key(prefix)
        found: list[BlobInfo] = []
        async with self._call(f"list {prefix or 'everything'}", 0) as limit:
            async for some in _list(self._store, prefix or None, chunk_size=1000):
                for meta in some:
                    modified_ms = int(meta["last_modified"].timestamp() * 1000)
                    found.append(BlobInfo(meta["path"], meta["size"], modified_ms))
                self._allow(limit, 0)
        found.sort(key=lambda info: info.key)
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that is not there is as deleted.

        Raises:
            BlobsUnavailable: the store does not answer in time; some may be deleted.
        """
        for key in keys:
            _check_key(key)
            # One by one: a store told to delete several stops at the first that is gone.
            with contextlib.suppress(BlobMissing):
                async with self._call(f"delete {key}", 0):
                    await obstore.delete_async(self._store, key)
        if self._folder is not None:
            await asyncio.to_thread(
                _remove_empty, {(self._folder / key).parent for key in keys} - {self._folder}
            )

    async def clear_staged(self, older_than_ms: int = 86_400_000) -> int:
        """Remove what uploads that died left in a folder; returns how many. Buckets have rules of their own for it.

        Raises:
            BlobsUnavailable: the folder cannot be read.
        """
        if self._folder is None:
            return 0
        async with self._call("clear", 0):
            return await asyncio.to_thread(_remove_staged, self._folder, time.time() - older_than_ms / 1000)

    @contextlib.asynccontextmanager
    async def _call(self, what: str, size_bytes: int) -> AsyncGenerator[asyncio.Timeout]:
        """Bound one call, and tell its failures in our terms."""
        try:
            async with asyncio.timeout(self._limit_s(size_bytes)) as limit:
                yield limit
        except TimeoutError as error:
            raise BlobsUnavailable(f"{self.url} did not {what} in time.") from error
        except _LocalFailure as failure:
            raise cast("OSError", failure.__cause__) from None
        except FileNotFoundError as error:
            raise BlobMissing(f"There is no {what.partition(' ')[2]} in {self.url}.") from error
        except (BaseError, OSError, ValueError) as error:
            raise BlobsUnavailable(f"{self.url} did not {what}: {_reason(error)}") from error

    def _limit_s(self, size_bytes: int) -> float:
        return self._timeout_ms / 1000 + size_bytes / self._slowest

    def _allow(self, limit: asyncio.Timeout, size_bytes: int) -> None:
        """The time limit anew, now that the size is known or a page has come."""
        limit.reschedule(asyncio.get_running_loop().time() + self._limit_s(size_bytes))

    async def _sync(self, key: str) -> None:
        """The store renames into a folder without asking the disk; a manifest must not outlive what it names."""
        if self._folder is not None:
            await asyncio.to_thread(_sync_with_folders, self._folder, key)


class _LocalFailure(Exception):
    """The file of the caller failed, not the store."""


async def _outside(work: Callable[[], object]) -> None:
    """Run file work in a thread; its OSError is the caller's, not the store's."""
    try:
        await asyncio.to_thread(work)
    except OSError as error:
        raise _LocalFailure from error


def _sync_with_folders(folder: Path, key: str) -> None:
    path = folder / key
    while True:
        _sync(path)
        if path == folder:
            return
        path = path.parent


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        # Not empty, or gone already: either is well.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove_staged(folder: Path, before_s: float) -> int:
    count = 0
    for path in folder.rglob("*#*"):
        with contextlib.suppress(FileNotFoundError):
            if _STAGED.search(path.name) and path.is_file() and path.stat().st_mtime < before_s:
                path.unlink()
                count += 1
    return count


def _check_key(key: str) -> None:
    parts = key.split("/")
    if not key.isascii() or not key.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is no key of an object")


def _reason(error: BaseException) -> str:
    """The first line: the binding adds pages of its own structures."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
