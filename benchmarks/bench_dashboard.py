"""The dashboard's speed: knob to figure on the server, first paint, and many visitors at once.

`python -m benchmarks.bench_dashboard [--visitors 20] [--json FILE]`. Knob to figure is server-side, in this process:
reading the question, the event run, every figure of What-if and its JSON, for DeepSeek-V3 on 2,048 GPUs, a knob turned
to a value not seen before each time. Visitors speak Streamlit's protocol without a browser (`benchmarks.thin_visitor`),
as twenty browsers would measure themselves. First paint needs Chromium and is left out, with a word, without one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qsl, urlencode

from benchmarks.thin_visitor import Visitor

QUESTION = {
    "model": "DeepSeek-V3", "cluster": "h800", "gpus": "2048", "global_batch": "15360", "pp": "16", "ep": "64",
    "recompute": "full",
}  # fmt: skip
TURNED = (
    {"global_batch": "7680"}, {"ep": "32"}, {"tp": "2"}, {"pp": "8"}, {"recompute": "moe_act,layernorm"},
    {"cluster.scale_out.bytes_per_s": "1e11"}, {"micro_batch": "2"}, {"routing": "uniform"}, {"precision": "fp8"},
    {"vpp": "2", "global_batch": "16384"}, {"seq_len": "8192"}, {"device.mem_bytes": "1e11"},
)  # fmt: skip
PAGES = ("timeline", "experts", "network", "sensitivity", "accuracy", "compare", "plan")
VIEWS_EACH = 4
PAUSE_S = 3.0  # a visitor looks before turning on


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


@contextmanager
def _server(*, plain: bool = False) -> Iterator[tuple[str, int]]:
    """Address and process of a server of its own; plain: started by `streamlit run`, not `moecast dashboard`."""
    from tests.dashboards.browser.conftest import free_port, serve, wait_until_up

    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log.txt", free_port()
        process = serve(port, log, plain=plain)
        try:
            wait_until_up(port, process, log)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(20)


def first_paint(*, plain: bool) -> float:
    """Seconds until a browser shows the numbers of What-if: the first visitor of a server that has just come up."""
    from playwright.sync_api import sync_playwright

    found = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.goto("about:blank")
        with _server(plain=plain) as (address, _):
            started = time.perf_counter()
            tab.goto(address)
            tab.wait_for_selector(".tiles", timeout=60_000)
            seconds = time.perf_counter() - started
        browser.close()
    return seconds


def visitors(count: int) -> dict[str, Any]:
    """So many visitors at once, without browsers: each opens views and turns knobs of a scenario of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with _server() as (address, pid):
        peak, done = [0], Event()

        def watch() -> None:
            while not done.wait(0.1):
                peak[0] = max(peak[0], _rss_bytes(pid))

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            seen = list(pool.map(partial(_visit, address), range(count)))
        wall_s = time.perf_counter() - started
        done.set()
        watcher.join()
    first, opened, turned = (sorted(s for v in seen for s in v[what]) for what in ("first", "opened", "turned"))
    return {
        "visitors": count, "wall_s": wall_s, "peak_rss_bytes": peak[0],
        "errors": [error for v in seen for error in v["errors"]],
        "first_paint_s": _spread(first), "view_s": _spread(opened), "knob_s": _spread(turned),
    }  # fmt: skip


def _visit(address: str, number: int) -> dict[str, Any]:
    """One visitor: seconds to the first numbers, of every view opened and of every knob turned, and errors."""
    knobs = {"model": "Mixtral-8x7B", "cluster": "dgx-h100", "ep": "8", "gpus": str(32 * 2 ** (number % 3)),
             "routing": "zipf:0.3"}  # fmt: skip
    asked = QUESTION if number % 4 == 0 else knobs
    asked = {**asked, "global_batch": str(1024 * (15 if asked is QUESTION else 1 + number))}
    out: dict[str, Any] = {"first": [], "opened": [], "turned": []}
    with Visitor(address, urlencode(asked)) as visitor:
        visitor.open()
        out["first"].append(visitor.first_s)
        for i in range(VIEWS_EACH):
            visitor.open(PAGES[(number + i) % len(PAGES)])
            out["opened"].append(visitor.first_s)
            visitor.wait(PAUSE_S)
        visitor.open()
        for label, value in (("Precision", "fp8"), ("Recompute", "full"), ("Seq len", "2048"), ("EP", "4")):
            visitor.turn(label, value)
            out["turned"].append(visitor.done_s)
            visitor.wait(PAUSE_S)
        now = dict(parse_qsl(visitor.query))
        if now.get("global_batch") != asked["global_batch"] or now.get("model") != asked["model"]:
            visitor.errors.append(f"the scenario of another: {visitor.query}")
        if 'class="problem' in visitor.texts() or 'class="tiles' not in visitor.texts():
            visitor.errors.append(f"no answer: {visitor.texts()[:300]}")
        out["errors"] = [f"visitor {number}: {error}" for error in visitor.errors]
    return out


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "p90": seconds[int(0.9 * (len(seconds) - 1))], "worst": seconds[-1]}


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
    out["at_once"] = visitors(asked.visitors)
    try:
        out["first_paint_s"] = {"moecast dashboard": first_paint(plain=False), "streamlit run": first_paint(plain=True)}
    except ImportError as error:
        print(f"first paint left out: {error}", file=sys.stderr)
    print(json.dumps(out, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
