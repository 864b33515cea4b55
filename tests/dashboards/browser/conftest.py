"""A server on a free port of this machine, and the system's Chromium in front of it.

Without a browser the tests are skipped with a warning that cannot be overlooked; in CI (the variable `CI`) they fail.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 60_000


def serve(port: int, log: Path, *, plain: bool = False) -> subprocess.Popen[bytes]:
    """The page served as a user would, from this tree: by `moecast dashboard`, or by `streamlit run` with `plain`."""
    how = ["streamlit", "run", str(ROOT / "dashboards" / "app.py")] if plain else ["dashboards.serve"]
    command = [sys.executable, "-m", *how, "--server.port", str(port)]
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=log.parent, env={**os.environ, "PYTHONPATH": path}, stdout=out, stderr=out)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no server after a minute: {log.read_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    port = free_port()
    process = serve(port, log)
    try:
        wait_until_up(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None  # type: ignore[assignment]
    if found is None or sync_playwright is None:
        lacks = "no Chromium found" if found is None else "playwright is not installed"
        said = f"{lacks}: the dashboard was NOT tested in a browser; install chromium, or run .ci/run"
        if os.environ.get("CI"):
            pytest.fail(said)
        warnings.warn(said, stacklevel=1)
        pytest.skip(said)
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A visitor of her own, whose page must raise no error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors
