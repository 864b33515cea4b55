"""The benchmark page, written from what the scripts measured.

    python -m benchmarks.page [NAME ...] [--show] [--take NAME=FILE ...]

Runs the scripts (all, or those named) one after the other, keeps their figures in `benchmarks/results.json` and writes
`docs/benchmarks.md`. --show: writes the page from the figures that are there; --take: with the figures that a script
wrote by itself, for those that take long or need something else beside them. Seconds are this machine's, under what
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
    "bench_search_runs": "Event runs in a search: DeepSeek-V3 on 2,048 H800, plans in order of bound",
    "bench_plan_scale": "Planning as questions grow (CPU seconds)",
    "bench_engine": "Event engine",
    "bench_noise": "Routing noise",
    "bench_topology": "Clusters: 16,384 devices on rails",
    "bench_placement": "Expert placement",
}
BY_HAND = {
    "study_bound": "The lower bound against the event run",
    "study_survives": "A study of 2,000 cases, a worker and the client killed",
    "peers": "Beside other planners",
}
HOW = {
    "study_bound": "python -m benchmarks.study_bound --count 10000 --seed 1 --json FILE",
    "study_survives": "python -m benchmarks.study_survives dask 2000 FILE",
    "peers": "python -m benchmarks.peers --peer-path NAME=DIR ... --json FILE",
}
NOTES = {
    "peers": """Peers give one closed-form figure a layout, to compare with our bound, not with an event run. Calculon
knows no experts; SimuMax judges both questions on its A100 file; llm-analysis divides FLOP by a share of the peak.""",
}
MORE = {"bench_plan_scale": ("--out", str(PAGE.parent / PICTURE))}
HEAD = """# Benchmarks

Written by `python -m benchmarks.page` (`make bench-page`) from `benchmarks/results.json`. Measured on {machine}. One
thread each, CPU time. Seconds move with what else the machine does, by a factor of two at times; ratios do not. No test
depends on them.
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
    for name, title in {**SCRIPTS, **BY_HAND}.items():
        rows = results["figures"].get(name)
        if rows is None:
            continue
        out += [
            f"## {title}",
            "",
            f"`{HOW.get(name, f'benchmarks/{name}.py')}`",
            "",
            "| what | figure | |",
            "|---|---:|---|",
        ]
        for row in rows:
            figure = Figure(**row)
            out.append(f"| {figure.what} | {figure.text} | {figure.note} |")
        out.append("")
        if name == "bench_plan_scale":
            out += [f"![CPU seconds of planning DeepSeek-V3 against GPUs]({PICTURE})", ""]
        if name in NOTES:
            out += [NOTES[name], ""]
    return "\n".join(out).rstrip() + "\n"


def _keep(results: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scripts to run: {', '.join(SCRIPTS)} (default: all)")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--take", action="append", default=[], metavar="NAME=FILE",
                        help=f"figures that {', '.join(BY_HAND)} wrote; nothing else is measured")  # fmt: skip
    args = parser.parse_args(words)
    taken = [text.partition("=")[::2] for text in args.take]
    if odd := [name for name, file in taken if name not in BY_HAND or not Path(file).is_file()]:
        parser.error(f"--take {', '.join(odd)}: give NAME=FILE, NAME one of {', '.join(BY_HAND)}, FILE what it wrote")
    if wrong := sorted(set(args.names) - set(SCRIPTS)):
        parser.error(f"no benchmark {', '.join(wrong)}; give some of {', '.join(SCRIPTS)}")
    results: dict[str, Any] = {"machine": machine(), "figures": {}}
    if RESULTS.exists():
        results["figures"] = json.loads(RESULTS.read_text(encoding="utf-8"))["figures"]
        results["machine"] = json.loads(RESULTS.read_text(encoding="utf-8"))["machine"] if args.show else machine()
    for name, file in taken:
        results["figures"][name] = json.loads(Path(file).read_text(encoding="utf-8"))
    for name in () if args.show or taken else args.names or SCRIPTS:
        results["figures"][name] = measured(name)
        _keep(results)
    _keep(results)
    PAGE.write_text(page(results), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
