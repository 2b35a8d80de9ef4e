"""Reading docker-compose.yml the way Compose does, as far as these tests need it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[?-])(?P<rest>[^}]*))?\}")


def read_compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def our_services(compose: Mapping[str, Any]) -> dict[str, Any]:
    """Return the services that run our image."""
    return {name: service for name, service in compose["services"].items() if "build" in service}


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """Return *text* with its variables filled in; a demanded one that is unset raises KeyError."""

    def fill(found: re.Match[str]) -> str:
        value = environ.get(found["name"], "")
        if value or found["kind"] is None:
            return value
        if found["kind"] == "?":
            raise KeyError(found["name"])
        return found["rest"]

    return VARIABLE.sub(fill, text)


def environment_of(service: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: interpolated(str(value), environ) for name, value in service.get("environment", {}).items()}
