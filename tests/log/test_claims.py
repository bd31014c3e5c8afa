"""The store of large bodies: in a folder, in memory and in a bucket."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pytest

from penstock.log.blobs import open_blobs
from penstock.log.claims import ClaimStore
from penstock.schemas.claims import Claim, claim_key, claim_of
from penstock.schemas.errors import ClaimDamaged, ClaimMissing, TooLarge

BODY = b'"' + b"x" * 2_000_000 + b'"'
JOB = "a.b:c~home"


@pytest.fixture(params=["folder", "memory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ClaimStore:
    if request.param == "bucket":
        return ClaimStore(open_blobs(request.getfixturevalue("s3_url")))
    return ClaimStore(open_blobs(str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4()}"))


async def kept(store: ClaimStore, body: bytes = BODY, job: str = JOB) -> Claim:
    claim = claim_of(await store.keep("default", job, body))
    assert claim is not None
    return claim


async def test_what_is_kept_can_be_had_again_by_its_job_alone(store: ClaimStore) -> None:
    claim = await kept(store)
    assert claim == Claim(hashlib.sha256(BODY).hexdigest(), len(BODY)) == await kept(store)
    assert await store.read("default", JOB, claim) == BODY
    for tenant, job in (("default", "another"), ("other", JOB)):
        with pytest.raises(ClaimMissing):
            await store.read(tenant, job, claim)


async def test_what_is_not_as_it_was_written_is_not_given(store: ClaimStore) -> None:
    small = await kept(store, b"[1]")
    for damaged in (b"[2]", b"[1", b""):
        await store.blobs.put(claim_key("default", JOB, small.sha256), damaged)
        with pytest.raises(ClaimDamaged):
            await store.read("default", JOB, small)


async def test_too_much_is_refused(tmp_path: Path) -> None:
    store = ClaimStore(open_blobs(str(tmp_path)), max_bytes=10)
    with pytest.raises(TooLarge):
        await store.keep("default", JOB, b"x" * 11)
    assert not list(tmp_path.iterdir())


async def test_bodies_are_listed_and_deleted_by_their_jobs(store: ClaimStore) -> None:
    await kept(store, b"[1]")
    await kept(store, b"[2]")
    other = await kept(store, b"[1]", "other")
    await store.blobs.put("not/a/body/of/ours", b"")
    found = await store.objects()
    assert [(one.tenant, one.job, one.size_bytes) for one in found] == [
        ("default", JOB, 3), ("default", JOB, 3), ("default", "other", 3)
    ]  # fmt: skip
    await store.delete([one for one in found if one.job == JOB])
    assert [one.job for one in await store.objects()] == ["other"]
    assert await store.read("default", "other", other) == b"[1]"
