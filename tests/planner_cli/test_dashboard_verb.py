"""`moecast dashboard`: what it starts, and what it refuses."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from planner.cli.app import app


def test_it_serves_this_machine_only_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, env: started.append(command))
    assert CliRunner().invoke(app, ["dashboard"]).exit_code == 0
    assert CliRunner().invoke(app, ["dashboard", "--host", "0.0.0.0", "--port", "9000"]).exit_code == 0
    first, second = (dict(zip(c[3::2], c[4::2], strict=True)) for c in started)
    assert first == {"--server.port": "8501", "--server.address": "127.0.0.1"}
    assert second == {"--server.port": "9000", "--server.address": "0.0.0.0"}
    assert started[0][1:3] == ["-m", "dashboards.serve"]


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_a_bad_port_is_refused(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started"))
    assert CliRunner().invoke(app, ["dashboard", "--port", port]).exit_code == 2


def test_the_page_is_safe_by_default() -> None:
    """The settings that both ways to start it share."""
    from dashboards.uploads import MAX_FILE_BYTES

    root = Path(__file__).resolve().parents[2]
    settings: dict[str, Any] = tomllib.loads((root / "dashboards/.streamlit/config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["enableXsrfProtection"] is True
    assert settings["server"]["maxUploadSize"] * 2**20 == MAX_FILE_BYTES
    assert settings["client"]["showErrorDetails"] == "none"
    assert settings["browser"]["gatherUsageStats"] is False
