"""Settings of every process and of the command line: flags over ``PENSTOCK_*`` over a TOML file over defaults.

A setting has one name: ``work_partitions`` in the file is ``PENSTOCK_WORK_PARTITIONS`` in the environment and
``--work-partitions`` where a command takes it. An empty variable counts as not set. A value that is not allowed and a
key that does not exist stop the program with a message that names the key and where it was read.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from penstock.client.calls import DEFAULT_SERVER
from penstock.core.job import MAX_VERB_AGE_MS, TERMINAL
from penstock.schemas.errors import SettingsInvalid
from penstock.schemas.ids import NAME_PATTERN
from penstock.schemas.limits import (
    DEFAULT_CLAIM_BYTES,
    DEFAULT_PAYLOAD_BYTES,
    MAX_CLAIM_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_RESULT_BYTES,
)
from penstock.schemas.topics import Topics
from penstock.workers.scaling import bounds_of

ENV_PREFIX = "PENSTOCK_"
CONFIG_FILE = "penstock.toml"

EMBEDDED = "embedded:"
KAFKA = "kafka://"

CLUSTER_PARTITIONS, CLUSTER_WORK_PARTITIONS = 16, 64
LOCAL_PARTITIONS, LOCAL_WORK_PARTITIONS = 4, 4

Port = Annotated[int, Field(ge=0, le=65_535)]

NEVER = "never"
_DURATION = re.compile(r"(\d{1,9})(ms|s|m|h|d|w)", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
MIN_RETENTION_MS = 2 * MAX_VERB_AGE_MS


def duration_ms(value: Any) -> int | None:
    """Milliseconds of a duration like ``90s``, ``36h`` or ``7d``; None for ``never``. Raises ValueError."""
    if value is None or value == NEVER:
        return None
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a duration like 90s, 20m, 36h or 7d, or never")
    return int(found[1]) * _UNIT_MS[found[2]]


def _retention_ms(value: Any) -> int | None:
    age_ms = duration_ms(value)
    if age_ms is not None and age_ms < MIN_RETENTION_MS:
        raise ValueError(
            f"must be {MIN_RETENTION_MS // 60_000}m or more: late copies of a job's lines may come until then"
        )
    return age_ms


Duration = Annotated[int | None, BeforeValidator(duration_ms)]
Retention = Annotated[int | None, BeforeValidator(_retention_ms)]


def _split(value: Any) -> Any:
    """Several values in one variable are separated by commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseSettings):
    """All settings. Numbers that default to None depend on the log: see the properties."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=False,
    )

    log: str = ""
    """``embedded:PATH`` or ``kafka://host:port,...``; empty is an embedded log in the data folder."""
    namespace: str = Field("penstock", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._\-]{0,99}$")
    partitions: int | None = Field(None, ge=1, le=1_024)
    work_partitions: int | None = Field(None, ge=2, le=1_024)
    replication: int | None = Field(None, ge=1, le=15)
    share: str = "1/1"
    """Which of the partitions an orchestrator, projection or node folds: ``2/3`` is the second of three parts."""
    data: Path = Path("penstock-data")
    fsync: bool = True
    """Whether the embedded log is on the disk before a write is acknowledged."""

    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 8700
    server: str = DEFAULT_SERVER
    health_port: Port | None = None
    projection_address: str = ""
    """``host:port`` on which a projection process answers, and which it tells others."""
    cors_origins: Annotated[list[str], NoDecode, BeforeValidator(_split)] = []
    """Origins whose pages may call the API from a browser."""
    max_payload_bytes: int = Field(DEFAULT_PAYLOAD_BYTES, ge=1, le=MAX_PAYLOAD_BYTES)
    """Larger payloads lie beside the log, where ``claims`` says; without that they are refused."""
    claims: str = ""
    """Where payloads and results lie that are too large for the log: a folder or the address of a bucket. Empty is a
    folder beside an embedded log, and nowhere on a cluster."""
    claim_max_bytes: int = Field(DEFAULT_CLAIM_BYTES, ge=MAX_RESULT_BYTES, le=MAX_CLAIM_BYTES)

    name: str = Field("", max_length=200)
    """Name of this process among its like; empty makes one from host and process id."""
    app: Annotated[list[str], NoDecode, BeforeValidator(_split)] = []
    command: list[str] = []
    """Programs as handlers, ``TYPE=PROGRAM ARGUMENT ...`` each; a JSON array in the environment."""
    pool: str = Field("default", pattern=NAME_PATTERN)
    concurrency: int = Field(10, ge=1, le=10_000)
    processes: str = "1"
    """Worker processes: a number, or bounds like ``1..8`` within which there are as many as there is work for."""
    grace_ms: int = Field(10_000, ge=0, le=3_600_000)
    """How long running handlers may go on when their worker is told to stop; then they are stopped."""

    retention_succeeded: Retention = None
    """How long after its end a job is forgotten, in ms, by the state in which it ended; None is never."""
    retention_cancelled: Retention = None
    retention_expired: Retention = None
    retention_dead: Retention = None
    retention_partial: Retention = None
    retention_deleted: Retention = None
    retention_history: Duration = None
    """How long the read model keeps a forgotten job's history, in ms."""
    text_index: bool = True
    """Whether the read model keeps an index of what searches look for inside jobs."""

    archive: str = ""
    """Where the jobs log is archived: a folder or the address of a bucket; empty is nowhere."""
    archive_after: Annotated[int, BeforeValidator(duration_ms)] = 6 * 3_600_000
    """A record is archived once it is this old, in ms, at the latest."""
    archive_segment_bytes: int = Field(64 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)
    trim_after: Duration = None
    """How old an archived record must be to be trimmed from the log by itself, in ms; None is never."""

    snapshots: str = ""
    """Where roles keep snapshots of their state: a folder or the address of a bucket; empty is nowhere."""
    snapshot_every_s: int = Field(300, ge=1, le=86_400)
    """How often one of each partition is taken, if there is anything new."""
    snapshot_keep: int = Field(3, ge=1, le=1_000)
    """How many of each partition are kept."""

    output_level: Literal["debug", "info", "warning", "error", "off"] = "info"
    """What handlers log is kept with their attempt from this level on."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_ssl_cafile: Path | None = None
    kafka_ssl_certfile: Path | None = None
    kafka_ssl_keyfile: Path | None = None
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSource(settings_cls)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log")
    @classmethod
    def _known_log(cls, value: str) -> str:
        return value if not value else log_url(value)

    @field_validator("processes")
    @classmethod
    def _known_processes(cls, value: str) -> str:
        bounds_of(value)
        return value

    @field_validator("projection_address")
    @classmethod
    def _known_address(cls, value: str) -> str:
        if value and not _is_address(value, any_port=True):
            raise ValueError("must be host:port")
        return value

    @field_validator("share")
    @classmethod
    def _known_share(cls, value: str) -> str:
        part, slash, parts = value.partition("/")
        numbers = all(0 < len(text) <= 4 and text.isascii() and text.isdigit() for text in (part, parts))
        if not (slash and numbers and 1 <= int(part) <= int(parts)):
            raise ValueError("must be a part of the partitions like 1/2 or 2/2")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _known_origins(cls, values: list[str]) -> list[str]:
        for value in values:
            parts = urlsplit(value)
            if value != "*" and (not parts.hostname or value != f"{parts.scheme}://{parts.netloc}"):
                raise ValueError(f"{value!r} is no origin like https://host:port, and not *")
        return values

    @field_validator("server")
    @classmethod
    def _known_server(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL like http://host:port")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> "Settings":
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError("kafka_security_protocol SASL needs kafka_sasl_username and kafka_sasl_password")
        return self

    @model_validator(mode="after")
    def _trim_has_an_archive(self) -> "Settings":
        if self.trim_after is not None and not self.archive:
            raise ValueError("trim_after needs an archive: what is trimmed would be lost (PENSTOCK_ARCHIVE)")
        return self

    @model_validator(mode="after")
    def _share_has_partitions(self) -> "Settings":
        if not self.folded:
            raise ValueError(f"share {self.share} is none of {self.topics.partitions} partitions")
        if self.is_embedded and self.share != "1/1":
            raise ValueError("share is for processes on Kafka: one process folds all of an embedded log")
        return self

    @property
    def folded(self) -> range:
        """Partitions that this process folds, leads or answers for, if that is what it does."""
        part, _, parts = self.share.partition("/")
        return range(int(part) - 1, self.topics.partitions, int(parts))

    @property
    def retention_ms(self) -> dict[str, int]:
        """Ages at which ended jobs are forgotten, by state; those that are kept for ever are left out."""
        ages = {state: getattr(self, f"retention_{state}") for state in TERMINAL}
        return {state: age_ms for state, age_ms in sorted(ages.items()) if age_ms is not None}

    @property
    def log_url(self) -> str:
        """The log, with the default filled in."""
        return self.log or f"{EMBEDDED}{self.data}"

    @property
    def is_embedded(self) -> bool:
        return self.log_url.startswith(EMBEDDED)

    @property
    def embedded_path(self) -> Path:
        """Folder of the embedded log."""
        return Path(self.log_url.removeprefix(EMBEDDED))

    @property
    def claims_url(self) -> str:
        """The store of large bodies, with the default filled in; empty where there is none."""
        return self.claims or (str(self.embedded_path / "claims") if self.is_embedded else "")

    @property
    def topics(self) -> Topics:
        """Names and partition counts of the topics; fewer partitions where one process does everything."""
        local = self.is_embedded
        return Topics(
            namespace=self.namespace,
            partitions=self.partitions or (LOCAL_PARTITIONS if local else CLUSTER_PARTITIONS),
            work_partitions=self.work_partitions
            or (LOCAL_WORK_PARTITIONS if local else CLUSTER_WORK_PARTITIONS),
        )


def log_url(value: str) -> str:
    """The address of a log, as it was given. Raises ValueError."""
    if value.startswith(EMBEDDED) and value != EMBEDDED:
        return value
    if value.startswith(KAFKA) and all(_is_address(part) for part in value[len(KAFKA) :].split(",")):
        return value
    raise ValueError("must be embedded:PATH or kafka://host:port,host:port")


def _is_address(text: str, *, any_port: bool = False) -> bool:
    host, colon, port = text.rpartition(":")
    least = 0 if any_port else 1
    return bool(host and colon) and port.isascii() and port.isdigit() and least <= int(port) <= 65_535


class FileSource(PydanticBaseSettingsSource):
    """What stands in the TOML file that :func:`load` chose."""

    values: Mapping[str, Any] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.values)


def load(config: Path | None = None, **flags: Any) -> Settings:
    """The settings of this process.

    Args:
        config: the TOML file; None takes ``./penstock.toml`` if there is one.
        flags: what was given on the command line; None is not given.

    Raises:
        SettingsInvalid: a value is not allowed, the file cannot be read, or it has a key that does not exist.
    """
    given = {name: value for name, value in flags.items() if value not in (None, [], ())}
    return _build(given, given, _file_of(config))


def _file_of(config: Path | None) -> Path | None:
    named = config or (Path(path) if (path := os.environ.get("PENSTOCK_CONFIG")) else None)
    if named is not None:
        return named
    usual = Path(CONFIG_FILE)
    return usual if usual.is_file() else None


def _build(values: Mapping[str, Any], flags: Mapping[str, Any], file: Path | None) -> Settings:
    in_file = {} if file is None else _read_file(file)
    FileSource.values = in_file
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsInvalid(
            "; ".join(_explain(cast("Any", entry), flags, in_file, file) for entry in error.errors())
        ) from error
    finally:
        FileSource.values = {}


def _read_file(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsInvalid(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{file} is not TOML: {error}") from error
    for key in found:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsInvalid(f"{file}: there is no setting {key!r}{hint}", key=key)
    return found


def _explain(entry: Any, flags: Mapping[str, Any], in_file: Mapping[str, Any], file: Path | None) -> str:
    reason = str(entry["msg"]).removeprefix("Value error, ")
    if not entry["loc"]:
        return reason
    key = str(entry["loc"][0])
    variable = f"{ENV_PREFIX}{key.upper()}"
    if key in flags:
        source = f"--{key.replace('_', '-')}"
    elif os.environ.get(variable):
        source = variable
    elif key in in_file:
        source = f"{key} in {file}"
    else:
        source = key
    return f"{source}: {reason}"
