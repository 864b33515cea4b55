"""The benchmark page, written from what the scripts measured.

    python -m benchmarks.page [NAME ...] [--show]

Runs the scripts (all, or those named) one after the other, keeps their figures in `benchmarks/results.json` and writes
`docs/benchmarks.md`. --show: writes the page from the figures that are there. Seconds are this machine's, under what
else it does; the page says what machine it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

HERE = Path(__file__).parent
RESULTS, PAGE, PICTURE = HERE / "results.json", HERE.parent / "docs" / "benchmarks.md", "images/plan-cost.svg"
SCRIPTS = {
    "bench_screen": "Screening: DeepSeek-V3 on 2,048 H800",
    "bench_plan": "Event runs and a plan: DeepSeek-V3 on 2,048 H800, PP16, 120 micro-batches",
    "bench_plan_scale": "Planning as questions grow (CPU seconds)",
    "bench_engine": "Event engine",
    "bench_noise": "Routing noise",
    "bench_topology": "Clusters: 16,384 devices on rails",
    "bench_placement": "Expert placement",
}
MORE = {"bench_plan_scale": ("--out", str(PAGE.parent / PICTURE))}
HEAD = """# Benchmarks

Written by `python -m benchmarks.page` (`make bench-page`) from `benchmarks/results.json`. Measured on {machine}. One
thread each, CPU time. Seconds move with what else the machine does, by a factor of two at times; ratios do not. No test
depends on them.
"""
TAIL = """
`python -m benchmarks.study_bound --count 10000 --seed 1` compares the lower bound with the event run over random
candidates; `python -m benchmarks.peers --peer-path NAME=DIR` stands other planners beside ours: they give one
closed-form figure a layout, which compares with the bound, not with an event run.
"""


def machine() -> str:
    """The processor in words, without a date."""
    kind = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
    except OSError:
        pass
    return f"{os.cpu_count()} cores ({kind}), {platform.system()}, Python {platform.python_version()}"


def measured(name: str) -> list[dict[str, Any]]:
    """Run one script and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file), *MORE.get(name, ())]
        subprocess.run(command, check=True, cwd=HERE.parent)
        found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def page(results: Mapping[str, Any]) -> str:
    """The page of some results."""
    out = [HEAD.format(machine=results["machine"])]
    for name, title in SCRIPTS.items():
        rows = results["figures"].get(name)
        if rows is None:
            continue
        out += [f"## {title}", "", f"`benchmarks/{name}.py`", "", "| what | figure | |", "|---|---:|---|"]
        for row in rows:
            figure = Figure(**row)
            out.append(f"| {figure.what} | {figure.text} | {figure.note} |")
        out.append("")
        if name == "bench_plan_scale":
            out += [f"![CPU seconds of planning DeepSeek-V3 against GPUs]({PICTURE})", ""]
    return "\n".join(out).rstrip() + "\n" + TAIL


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scripts to run: {', '.join(SCRIPTS)} (default: all)")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    args = parser.parse_args(words)
    if wrong := sorted(set(args.names) - set(SCRIPTS)):
        parser.error(f"no benchmark {', '.join(wrong)}; give some of {', '.join(SCRIPTS)}")
    results: dict[str, Any] = {"machine": machine(), "figures": {}}
    if RESULTS.exists():
        results["figures"] = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]
        results["machine"] = json.loads(RESULTS.read_text(encoding="utf-8"))["machine"] if args.show else machine()
    for name in () if args.show else args.names or SCRIPTS:
        results["figures"][name] = measured(name)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
