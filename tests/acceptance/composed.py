"""compose.yaml as tests need it."""

from __future__ import annotations

from typing import Any

import yaml

from tests.acceptance.processes import ROOT

COMPOSE = ROOT / "compose.yaml"
ROLES = ("orchestrator-1", "orchestrator-2", "projection", "api", "worker")
"""Services that run a role, in the order in which they can be started."""


def composition() -> dict[str, Any]:
    """The file, merged as the engine merges it."""
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))


def services() -> dict[str, dict[str, Any]]:
    """Services by name."""
    return composition()["services"]
