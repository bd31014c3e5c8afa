"""Where settings come from, which one wins, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.cli.opening import kafka_client
from penstock.cli.settings import ENV_PREFIX, Settings, load
from penstock.schemas.errors import SettingsInvalid


def in_file(text: str) -> Path:
    path = Path("penstock.toml")
    path.write_text(text)
    return path


class TestPrecedence:
    def test_flags_before_environment_before_file_before_defaults(self, monkeypatch: pytest.MonkeyPatch):
        assert load().port == 8700
        in_file("port = 1")
        assert load().port == 1
        monkeypatch.setenv("PENSTOCK_PORT", "2")
        assert load().port == 2
        assert load(port=3).port == 3

    def test_sources_are_mixed_by_key(self, monkeypatch: pytest.MonkeyPatch):
        in_file("port = 1\nhost = 'file'\npool = 'file'\napp = ['x', 'y']")
        monkeypatch.setenv("PENSTOCK_HOST", "environment")
        found = load(pool="flag")
        assert (found.port, found.host, found.pool, found.app) == (1, "environment", "flag", ["x", "y"])

    @pytest.mark.parametrize("nothing", [None, [], ()])
    def test_a_flag_not_given_is_no_flag(self, nothing: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PENSTOCK_APP", "a, b,")
        assert load(app=nothing).app == ["a", "b"]

    def test_origins_are_separated_by_commas(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PENSTOCK_CORS_ORIGINS", "https://a.example, http://localhost:3000")
        assert load().cors_origins == ["https://a.example", "http://localhost:3000"]

    def test_an_empty_variable_is_not_set(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PENSTOCK_PORT", "")
        assert load().port == 8700

    def test_the_file_may_be_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        in_file("port = 1")
        other = tmp_path / "other.toml"
        other.write_text("port = 2")
        assert load(other).port == 2
        monkeypatch.setenv("PENSTOCK_CONFIG", str(other))
        assert load().port == 2

    def test_each_key_of_the_file_is_a_variable_too(self, monkeypatch: pytest.MonkeyPatch):
        for name in Settings.model_fields:
            assert ENV_PREFIX + name.upper() == f"PENSTOCK_{name.upper()}"
        monkeypatch.setenv("PENSTOCK_KAFKA_SASL_USERNAME", "u")
        assert load().kafka_sasl_username == "u"


class TestDefaults:
    def test_the_embedded_log_lies_in_the_data_folder(self):
        found = load(data=Path("d"))
        assert (found.is_embedded, found.embedded_path, found.log_url) == (True, Path("d"), "embedded:d")

    def test_one_process_needs_fewer_partitions(self):
        assert (load().topics.partitions, load().topics.work_partitions) == (4, 4)
        cluster = load(log="kafka://a:1,b:2").topics
        assert (cluster.partitions, cluster.work_partitions) == (16, 64)
        chosen = load(log="kafka://a:1", partitions=3, work_partitions=5, namespace="n").topics
        assert (chosen.partitions, chosen.work_partitions, chosen.jobs) == (3, 5, "n.jobs")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "x"), ("port", 65_536), ("port", -1), ("partitions", 0), ("work_partitions", 1), ("log", "redis://a"),
        ("log", "kafka://a"), ("log", "kafka://"), ("log", "kafka://a:0"), ("log", "embedded:"), ("namespace", "a b"),
        ("server", "a"), ("server", "ftp://a"), ("log_level", "loud"), ("log_format", "xml"), ("fsync", "maybe"),
        ("projection_address", "a"), ("cors_origins", "ops.example"), ("cors_origins", "https://a/b"),
        ("max_payload_bytes", 10_000_000), ("concurrency", 0), ("pool", "a b"),
        ("kafka_security_protocol", "TLS"), ("replication", 0), ("share", "2"), ("share", "0/2"), ("share", "3/2"),
        ("share", "1/2/3"), ("share", "a/2"), ("share", "-1/2"),
    ],
)  # fmt: skip
class TestBadValues:
    def test_a_flag_is_named(self, key: str, value: Any):
        with pytest.raises(SettingsInvalid, match=f"^--{key.replace('_', '-')}: "):
            load(**{key: value})

    def test_a_variable_is_named(self, key: str, value: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(f"PENSTOCK_{key.upper()}", str(value))
        with pytest.raises(SettingsInvalid, match=f"^PENSTOCK_{key.upper()}: "):
            load()

    def test_a_file_is_named(self, key: str, value: Any):
        in_file(f"{key} = {value!r}")
        with pytest.raises(SettingsInvalid, match=rf"^{key} in penstock\.toml: "):
            load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", r"penstock\.toml: there is no setting 'prot'; did you mean port\?"),
        ("[kafka]\nx = 1", "there is no setting 'kafka'"),
        ("=", "is not TOML"),
        ("a = 1\na = 2", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong(text: str, message: str):
    in_file(text)
    with pytest.raises(SettingsInvalid, match=message):
        load()


def test_a_file_that_is_not_there():
    with pytest.raises(SettingsInvalid, match=r"nope\.toml cannot be read: No such file"):
        load(Path("nope.toml"))


class TestShares:
    def test_the_parts_are_disjoint_and_together_all(self):
        shares = [load(log="kafka://a:1", partitions=7, share=f"{part}/3").folded for part in (1, 2, 3)]
        assert sorted(partition for share in shares for partition in share) == list(range(7))
        assert [len(share) for share in shares] == [3, 2, 2]

    def test_all_is_the_default(self):
        assert load(log="kafka://a:1").folded == range(16)

    def test_a_share_of_nothing(self):
        with pytest.raises(SettingsInvalid, match="share 3/3 is none of 2 partitions"):
            load(log="kafka://a:1", partitions=2, share="3/3")

    def test_an_embedded_log_has_one_process(self):
        with pytest.raises(SettingsInvalid, match="share is for processes on Kafka"):
            load(share="1/2")


class TestKafka:
    def test_sasl_must_be_whole(self):
        with pytest.raises(SettingsInvalid, match="needs kafka_sasl_username and kafka_sasl_password"):
            load(kafka_security_protocol="SASL_PLAINTEXT", kafka_sasl_username="u")

    def test_sasl_arrives_at_the_client(self):
        found = load(
            kafka_security_protocol="SASL_PLAINTEXT", kafka_sasl_mechanism="SCRAM-SHA-512", kafka_sasl_username="u",
            kafka_sasl_password="secret",
        )  # fmt: skip
        assert "secret" not in repr(found)
        assert kafka_client(found) == {
            "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "sasl_plain_username": "u",
            "sasl_plain_password": "secret",
        }  # fmt: skip

    def test_tls_has_a_context(self):
        assert kafka_client(load(kafka_security_protocol="SSL"))["ssl_context"].check_hostname

    def test_a_certificate_that_is_not_there(self):
        with pytest.raises(SettingsInvalid, match="kafka_ssl_cafile"):
            kafka_client(load(kafka_security_protocol="SSL", kafka_ssl_cafile=Path("nope.pem")))
