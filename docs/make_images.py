"""Screenshots of every view of the dashboard: `python docs/make_images.py`; needs Chromium and the `dev` extra.

Writes docs/images/<view>-<width>.png, for a training run that people know.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (1280, 1920)
DRAWN = ".tiles, .problem, .js-plotly-plot, table.plain, .stMain .stButton, .stMain [data-testid=stCaptionContainer]"
SCENARIO = {
    "model": "Qwen3-235B-A22B", "cluster": "dgx-h100", "gpus": "256", "global_batch": "1024", "pp": "8", "ep": "8",
    "tp": "2", "recompute": "moe_act,layernorm", "routing": "zipf:0.3",
}  # fmt: skip
BASELINE = {**SCENARIO, "tp": "1"}
# What a view does only when asked: the button, and how many figures there are once it is done.
CLICKS = {
    "plan": (re.compile("Search$"), 3), "experts": (re.compile("Place$"), 4),
    "sensitivity": (re.compile("Simulate "), 2),
}  # fmt: skip
EXACT_COLOURS = 176  # of a picture's palette of 256: those of its largest areas, kept to the bit
COMPARED = (SCENARIO, BASELINE, {**SCENARIO, "ep": "16"})


def main() -> int:
    """Serve the page, look at every view in both widths, keep what was seen."""
    from playwright.sync_api import sync_playwright

    from dashboards.page import VIEWS, path_of

    out = ROOT / "docs" / "images"
    out.mkdir(exist_ok=True)
    browser_path = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            str(ROOT / "dashboards/app.py"),
            "--server.port",
            str(port),
        ]
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(address, server)
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
                for width in WIDTHS:
                    for view in VIEWS:
                        _shoot(
                            browser,
                            f"{address}/{path_of(view)}?{_query(view)}",
                            view,
                            width,
                            out / f"{view}-{width}.png",
                        )
                browser.close()
        finally:
            server.terminate()
    return 0


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise SystemExit("the server stopped")
        try:
            urllib.request.urlopen(f"{address}/_stcore/health", timeout=2)
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("no server after a minute")


def _query(view: str) -> str:
    pairs = list(SCENARIO.items())
    if view == "what_if":
        pairs.append(("base", urlencode(BASELINE)))
    if view == "compare":
        pairs += [("s", urlencode(scenario)) for scenario in COMPARED]
    return urlencode(pairs)


def _shoot(browser: Any, address: str, view: str, width: int, out: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": 1000})
    tab = context.new_page()
    tab.goto(address)
    tab.locator(DRAWN).locator("visible=true").first.wait_for(timeout=120_000)
    if tab.query_selector(".problem"):
        raise SystemExit(f"{view}: {tab.inner_text('.problem')}")
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=60_000)
    if view in CLICKS:
        button, figures = CLICKS[view]
        drawn = "document.querySelectorAll('.js-plotly-plot').length"
        tab.wait_for_timeout(5_000)
        found = tab.get_by_role("button", name=button)
        if found.count() and tab.evaluate(drawn) < figures:  # else the server remembers the answer
            found.last.click()
        tab.wait_for_function(f"{drawn} >= {figures}", timeout=240_000)
    tab.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=60_000)
    tab.wait_for_timeout(1_500)
    height = tab.evaluate("document.querySelector('.stMainBlockContainer').scrollHeight")
    tab.set_viewport_size({"width": width, "height": int(min(4_000, max(1_000, height + 40)))})
    tab.wait_for_timeout(1_500)
    tab.evaluate("document.querySelector('.stMain').scrollTo(0, 0)")
    _save(tab.screenshot(), out)
    context.close()


def _save(picture: bytes, out: Path) -> None:
    """Write it with 256 colours: a third of the bytes, and the same to the eye.

    The colours that fill areas stay as they are; the rest of the palette covers what anti-aliasing mixes of them.
    """
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(picture)).convert("RGB")
    counted = sorted(image.getcolors(image.width * image.height) or (), reverse=True)
    exact = [colour for _, colour in counted[:EXACT_COLOURS]]
    rest = image.quantize(colors=256 - len(exact), method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in exact for part in colour] + rest[: 3 * (256 - len(exact))])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
