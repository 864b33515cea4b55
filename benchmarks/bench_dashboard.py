"""The dashboard's speed: knob to figure on the server, first paint, and many visitors at once.

`python -m benchmarks.bench_dashboard [--visitors 20] [--json FILE]`. Knob to figure is server-side, in this process:
reading the question, the event run, every figure of What-if and its JSON, for DeepSeek-V3 on 2,048 GPUs, a knob turned
to a value not seen before each time. First paint and visitors need Chromium and are left out, with a word, without one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlencode

QUESTION = {
    "model": "DeepSeek-V3", "cluster": "h800", "gpus": "2048", "global_batch": "15360", "pp": "16", "ep": "64",
    "recompute": "full",
}  # fmt: skip
TURNED = (
    {"global_batch": "7680"}, {"ep": "32"}, {"tp": "2"}, {"pp": "8"}, {"recompute": "moe_act,layernorm"},
    {"cluster.scale_out.bytes_per_s": "1e11"}, {"micro_batch": "2"}, {"routing": "uniform"}, {"precision": "fp8"},
    {"vpp": "2", "global_batch": "16384"}, {"seq_len": "8192"}, {"device.mem_bytes": "1e11"},
)  # fmt: skip
PAGES = ("", "timeline", "experts", "network", "accuracy")


def knob_to_figure() -> list[float]:
    """Seconds per turned knob, each new to the server; after one warm-up."""
    from dashboards import figures, figures_compare, figures_memory
    from dashboards.answers import answer, side_of
    from dashboards.figures_base import themed
    from dashboards.state import Knobs

    seconds = []
    for turned in ({}, *TURNED):
        started = time.perf_counter()
        found = answer(Knobs.of({**QUESTION, **turned}))
        drawn = [figures.where_time_goes(found.report), figures_memory.memory_by_tag(found.report),
                 figures_compare.memory([side_of(found, "now")])]  # fmt: skip
        size = sum(len(themed(figure, dark=False).to_json()) for figure in drawn)
        assert size > 0
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _rss_bytes(pid: int) -> int:
    """Resident bytes of a process and its children."""
    total, wanted = 0, {pid}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(folder.name) in wanted or int(fields[1]) in wanted:
                wanted.add(int(folder.name))
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            continue
    return total


def _server() -> Iterator[tuple[str, int]]:
    import tempfile

    from tests.dashboards.browser.conftest import free_port, serve, wait_until_up

    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log.txt", free_port()
        process = serve(port, log)
        try:
            wait_until_up(port, process, log)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(20)


def visitors(count: int) -> dict[str, Any]:
    """First paint of a cold server, and peak memory and errors with so many visitors at once."""
    from playwright.sync_api import sync_playwright

    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    for address, pid in _server():
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
            tab = browser.new_page()
            started = time.perf_counter()
            tab.goto(address)
            tab.wait_for_selector(".tiles", timeout=60_000)
            first_s = time.perf_counter() - started
            peak, done = [0], Event()

            def watch(pid: int = pid, peak: list[int] = peak, done: Event = done) -> None:
                while not done.wait(0.2):
                    peak[0] = max(peak[0], _rss_bytes(pid))

            watcher = Thread(target=watch, daemon=True)
            watcher.start()
            tabs = [browser.new_context().new_page() for _ in range(count)]
            started = time.perf_counter()
            for i, each in enumerate(tabs):
                knobs = (
                    QUESTION
                    if i % 4 == 0
                    else {
                        "model": "Mixtral-8x7B",
                        "cluster": "dgx-h100",
                        "ep": "8",
                        "gpus": str(16 * (1 + i % 3)),
                        "global_batch": str(96 * (1 + i)),
                    }
                )
                each.goto(f"{address}/{PAGES[i % len(PAGES)]}?{urlencode(knobs)}", wait_until="commit")
            errors = 0
            for each in tabs:
                each.wait_for_selector(".tiles, .js-plotly-plot, table.plain, .problem", timeout=180_000)
                errors += "went wrong" in each.inner_text("body") or each.query_selector(".problem") is not None
            all_s = time.perf_counter() - started
            done.set()
            watcher.join()
            browser.close()
        return {"first_paint_s": first_s, "visitors": count, "all_painted_s": all_s, "errors": errors,
                "peak_rss_bytes": peak[0]}  # fmt: skip
    raise AssertionError("unreachable")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    times = knob_to_figure()
    out: dict[str, Any] = {
        "knob_to_figure_s": {"median": statistics.median(times), "worst": max(times), "of": len(times)},
        "processors": os.cpu_count(),
    }
    try:
        out |= visitors(asked.visitors)
    except ImportError as error:
        print(f"first paint and visitors left out: {error}", file=sys.stderr)
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
