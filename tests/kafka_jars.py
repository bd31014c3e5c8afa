"""Apache Kafka's own jars, fetched once with Maven and kept in a cache folder.

Tests want a real broker on machines that have a Java 17 runtime but no container engine. Kafka's server is an
ordinary Maven artifact, so `mvn dependency:copy-dependencies` yields everything that `kafka.Kafka` needs.

The folder appears by rename when it is complete: a run that was interrupted leaves nothing that looks finished, and
two runs that fetch at the same time do not disturb each other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

KAFKA_VERSION = "4.1.1"
SCALA_VERSION = "2.13"
LOG4J_VERSION = "2.24.3"  # the version Kafka's own log4j-core has; the slf4j binding must match it
COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
FETCH_TIMEOUT_S = 900

_ARTIFACTS = (
    ("org.apache.kafka", f"kafka_{SCALA_VERSION}", KAFKA_VERSION),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
    # Kafka logs through slf4j and ships the binding only in its tarball. Without it every start prints a warning
    # and the broker's log is lost.
    ("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J_VERSION),
)


class KafkaUnavailable(Exception):
    """No Kafka broker can be had on this machine; the message says what would help."""


def cache_folder() -> Path:
    """Where the jars of this Kafka version live, whether they are there yet or not."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock" / f"kafka-{KAFKA_VERSION}"


def missing_tools() -> list[str]:
    """Programs that must be installed before a broker can run here; empty when all are present."""
    tools = ["java"] if cache_folder().is_dir() else ["java", "mvn"]
    return [tool for tool in tools if shutil.which(tool) is None]


def ensure_jars() -> Path:
    """Folder with Kafka's jars, fetched when it is not there. Raises KafkaUnavailable when that fails."""
    folder = cache_folder()
    if missing := missing_tools():
        raise KafkaUnavailable(
            f"{' and '.join(missing)} not found; install a Java 17 runtime and Maven "
            "(Debian: openjdk-17-jre-headless maven), or start Docker, or set KAFKA_BOOTSTRAP=host:port"
        )
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        jars = Path(scratch) / "jars"
        _copy_dependencies(Path(scratch), jars)
        try:
            jars.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another run was first, and its jars are the same
                raise
    return folder


def _copy_dependencies(scratch: Path, target: Path) -> None:
    pom = scratch / "pom.xml"
    pom.write_text(_pom(), encoding="utf-8")
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(pom), COPY_GOAL]
    command += ["-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise KafkaUnavailable(f"Maven did not fetch Kafka's jars within {FETCH_TIMEOUT_S} s") from error
    if done.returncode or not any(target.glob(f"kafka_{SCALA_VERSION}-*.jar")):
        raise KafkaUnavailable(f"Maven could not fetch Kafka's jars:\n{(done.stdout + done.stderr)[-2000:]}")


def _pom() -> str:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
        for group, artifact, version in _ARTIFACTS
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>penstock.tests</groupId><artifactId>kafka-jars</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>"
    )
