"""compose.yaml and Dockerfile, read against what they speak of: the CLI's own flags, the settings, the files."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest

from penstock.cli.settings import ENV_PREFIX, Settings, load
from penstock.workers.loading import load_apps
from tests.acceptance.composed import COMPOSE, ROLES, composition, services
from tests.acceptance.processes import ROOT, understood
from tests.kafka_jars import KAFKA_VERSION

DOCKERFILE = ROOT / "Dockerfile"
OURS = (*ROLES, "cli")


def test_it_has_what_a_cluster_needs() -> None:
    assert set(services()) == {"kafka", "cli", *ROLES}
    assert {"kafka", "orchestrator-1", "orchestrator-2", "projection"} == set(composition()["volumes"])


@pytest.mark.parametrize("name", ROLES)
def test_commands_are_the_cli_s_own(name: str) -> None:
    arguments = services()[name]["command"]
    assert arguments[0] == name.removesuffix("-1").removesuffix("-2")
    assert understood(arguments)


@pytest.mark.parametrize("arguments", [["worker", "--no-such-flag"], ["no-such-command"]])
def test_what_does_not_exist_would_be_found(arguments: list[str]) -> None:
    assert not understood(arguments)


@pytest.mark.parametrize("name", OURS)
def test_environment_names_settings_and_gives_them_values_they_take(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = services()[name]["environment"]
    for variable, value in environment.items():
        assert isinstance(value, str), f"{variable} is no string: YAML would make something else of it"
        assert variable.removeprefix(ENV_PREFIX).lower() in Settings.model_fields, variable
        monkeypatch.setenv(variable, value)
    settings = load()
    if name in ROLES:
        broker = services()["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert settings.log_url == "kafka://" + re.search(r"PLAINTEXT://([^,]+)", broker)[1]


@pytest.mark.parametrize("name", ROLES)
def test_all_roles_agree_on_the_log(name: str) -> None:
    wanted = services()[ROLES[0]]["environment"]
    for variable in ("PENSTOCK_LOG", "PENSTOCK_NAMESPACE", "PENSTOCK_PARTITIONS"):
        assert services()[name]["environment"][variable] == wanted[variable]


@pytest.mark.parametrize("name", ROLES)
def test_health_is_asked_where_it_is_served(name: str) -> None:
    service = services()[name]
    port, path = re.search(r"127\.0\.0\.1:(\d+)(/\w+)", service["healthcheck"]["test"][-1]).groups()
    served = "PENSTOCK_PORT" if name == "api" else "PENSTOCK_HEALTH_PORT"
    assert service["environment"][served] == port
    assert path in {"/readyz", "/healthz"}
    assert service["healthcheck"]["test"][0] == "CMD"


def test_what_is_waited_for_has_a_health_check() -> None:
    for name, service in services().items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, f"{name} on {needed}"
            assert "healthcheck" in services()[needed]


def test_ports_and_addresses_fit_together() -> None:
    api, projection, kafka = services()["api"], services()["projection"], services()["kafka"]
    assert api["ports"] == [f"127.0.0.1:{api['environment']['PENSTOCK_PORT']}:8700"]
    assert projection["environment"]["PENSTOCK_PROJECTION_ADDRESS"].startswith("projection:")
    assert services()["cli"]["environment"]["PENSTOCK_SERVER"] == "http://api:8700"
    assert kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")[1] == "HOST://127.0.0.1:9094"
    assert kafka["ports"] == ["127.0.0.1:9094:9094"]


def test_nobody_is_root_and_nothing_is_published_to_the_world() -> None:
    for name, service in services().items():
        assert str(service["user"]).split(":")[0] not in {"", "root", "0"}, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert not service.get("privileged")
    user = re.findall(r"^USER (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)[-1]
    assert {services()[name]["user"] for name in OURS} == {user}


def test_volumes_are_declared_and_mounted_where_the_data_is() -> None:
    for name, service in services().items():
        for mount in service.get("volumes", []):
            volume, target = mount.split(":")
            assert volume in composition()["volumes"]
            data = "KAFKA_LOG_DIRS" if name == "kafka" else "PENSTOCK_DATA"
            assert service["environment"][data] == target


def test_versions_are_those_that_are_tested() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {services()[name]["image"] for name in OURS} == {f"penstock:{version}"}
    assert services()["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_processes_are_given_the_time_that_they_take_to_stop() -> None:
    from penstock.cli.roles import STOP_DEADLINE_S

    for name in ROLES:
        assert int(services()[name]["stop_grace_period"].removesuffix("s")) > STOP_DEADLINE_S


def test_the_worker_s_handlers_are_in_the_image() -> None:
    command = services()["worker"]["command"]
    path = command[command.index("--app") + 1]
    assert "COPY examples /app/examples" in DOCKERFILE.read_text()
    assert [task.name for task in load_apps([str(ROOT / path)])] == ["hello"]


def test_the_image_is_built_from_files_that_reach_the_engine() -> None:
    allowed = {
        line[1:].strip() for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied: list[str] = []
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE):
        copied += line.split()[:-1]
    assert copied
    for name in copied:
        assert (ROOT / name.removeprefix("./")).exists(), name
        assert name.removeprefix("./") in allowed, f"{name} is kept from the engine by .dockerignore"


def test_the_image_has_hashed_dependencies_only_and_its_settings_are_ours() -> None:
    text = DOCKERFILE.read_text()
    for line in re.findall(r"(?:uv )?pip install .*", text):
        assert (
            "--require-hashes" in line
            or "--verify-hashes -c requirements.lock" in line
            or "--no-index" in line
        )
    assert 'ENTRYPOINT ["penstock"]' in text
    for variable in re.findall(rf"({ENV_PREFIX}[A-Z_]+)=", text):
        assert variable.removeprefix(ENV_PREFIX).lower() in Settings.model_fields
    uv = re.search(r"^uv==.*?[^\\]$", (ROOT / "requirements.lock").read_text(), re.MULTILINE | re.DOTALL)
    assert uv is not None
    assert uv[0].count("--hash=sha256:") > 1


def test_the_file_says_how_to_use_it() -> None:
    assert COMPOSE.read_text().startswith("#")
    commands = re.findall(r"docker compose run --rm cli (.*?)[`\n]", COMPOSE.read_text())
    assert commands
    for command in commands:
        assert understood(shlex.split(command)), command
