"""What stands for a body that lies beside the log, and where that body is."""

from __future__ import annotations

import pytest
from msgspec import Raw

from penstock.schemas.claims import Claim, body_of, claim_key, claim_of, claimant_of

SHA = "9f" * 32
CLAIM = Claim(SHA, 70_000)


@pytest.mark.parametrize(
    "body",
    [
        body_of(CLAIM),
        Raw(body_of(CLAIM)),
        b'{ "$claim": {"size_bytes": 70000, "sha256": "' + SHA.encode() + b'"} }',
    ],
    ids=["as written", "raw", "as typed by hand"],
)
def test_a_claim_is_known(body: bytes | Raw) -> None:
    assert claim_of(body) == CLAIM


@pytest.mark.parametrize(
    "body",
    [
        b"null", b"", b'"$claim"', b'{"$claim":1}', b'{"$claim":{}}', b'{"$claim":{"sha256":"' + SHA.encode() + b'"}}',
        body_of(CLAIM)[:-1] + b',"more":1}', body_of(CLAIM).replace(b"9f9f", b"9F9F"), body_of(CLAIM) + b" " * 300,
        b'{"deeper":' + body_of(CLAIM) + b"}", b'{"$claim":\xff}', body_of(Claim(SHA, 7)).replace(b"7}", b"-7}"),
    ],
)  # fmt: skip
def test_anything_else_is_a_body_itself(body: bytes) -> None:
    assert claim_of(body) is None


@pytest.mark.parametrize("job", ["01m8fzb5qe", "a.b:c-d_e", "x~home:1", ".", ".."])
def test_the_key_names_its_job(job: str) -> None:
    key = claim_key("default", job, SHA)
    assert claimant_of(key) == ("default", job)
    assert not {".", ".."} & set(key.split("/"))
    assert all(part.isascii() and ":" not in part and "~" not in part for part in key.split("/"))


@pytest.mark.parametrize("key", ["default/other/" + SHA, "default/job-a", "a/default/job-a/" + SHA])
def test_what_others_put_there_is_nobodys(key: str) -> None:
    assert claimant_of(key) is None
