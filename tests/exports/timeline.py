"""Exported timelines against HolisticTraceAnalysis: its idle, compute and overlap shares must be the report's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from dashboards.trace_lanes import lane_shares, lanes_of, write_lane_traces
from sim.plan import Plan
from sim.report import Report
from sim.run import simulate
from sim.scenario import Scenario
from tests.planner.handed import handover

PIPED = Plan(pp=2, dp=16, ep=8, edp=2)
# Plan and switches of the profile: every way in which communication and computation share a lane.
PLANS: dict[str, tuple[Plan, dict[str, Any]]] = {
    "1f1b": (PIPED, {}),
    "1f1b without overlap of p2p": (replace(PIPED, tp=2, dp=8, micro_batch_seqs=2), {"p2p_overlap": False}),
    "interleaved": (Plan(pp=4, vpp=3, dp=8, ep=8, edp=1, schedule="interleaved"), {}),
    "interleaved with the all-to-all beside": (
        replace(PIPED, vpp=2, schedule="interleaved"), {"a2a_overlap": True, "delay_wgrad": True}
    ),
    "zb-h1": (replace(PIPED, schedule="zb-h1"), {}),
    "dualpipe": (replace(PIPED, schedule="dualpipe"), {"a2a_overlap": True}),
    "dualpipe-v": (replace(PIPED, vpp=2, schedule="dualpipe-v"), {}),
    "ddp": (Plan(dp=32, ep=8, edp=4), {}),
    "fsdp": (Plan(dp=32, ep=8, edp=4, zero_stage=3), {}),
}  # fmt: skip
COMPRESSED = "dualpipe"


def reports() -> dict[str, Report]:
    """A report with its timeline for each of PLANS."""
    out = {}
    for name, (plan, switches) in PLANS.items():
        asked = handover(plan)
        scenario = Scenario(
            model=asked.model, cluster=asked.cluster, software=replace(asked.software, **switches),
            workload=asked.workload, plan=plan,
        )  # fmt: skip
        out[name] = simulate(scenario, trace=True, steady=False)
    return out


ROUNDING = 0.0051  # percentage points: HTA rounds to two places


def run_hta(python: Path, folder: Path) -> int:
    """Number of timelines that HTA refused or summed up otherwise."""
    shutil.rmtree(folder, ignore_errors=True)  # files of an earlier run would be read with these
    folder.mkdir(parents=True)
    rows, made = [], {}
    for n, (name, report) in enumerate(reports().items()):
        write_lane_traces(report, folder / str(n), compress=name == COMPRESSED)
        rows.append({"folder": str(folder / str(n))})
        made[str(folder / str(n))] = (name, report)
    (folder / "index.json").write_text(json.dumps(rows))
    here = Path(__file__).parent
    done = subprocess.run(
        [str(python), str(here / "check_hta.py"), str(folder / "index.json")],
        capture_output=True, text=True, cwd=here,
        env={**os.environ, "PYTHONPATH": str(here), "HTA_DISABLE_NS_ROUNDING": "1"},
    )  # fmt: skip
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    said = {one["folder"]: one for one in (json.loads(x[7:]) for x in done.stdout.splitlines() if x[:7] == "RESULT ")}
    bad, lanes = 0, 0
    for where, (name, report) in made.items():
        answer = said.get(where, {"ok": False, "error": "no answer; see log.txt"})
        if not answer["ok"]:
            print(f"  {name}: {answer['error'][:300]}")
            bad += 1
            continue
        for i, lane in enumerate(lanes_of(report)):
            lanes += 1
            own, theirs = lane_shares(report, lane), answer["ranks"][str(i)]
            for key, value in theirs.items():
                if abs(100 * getattr(own, key) - value) > ROUNDING:
                    print(f"  {name} lane {lane}: {key} {value} instead of {100 * getattr(own, key):.4f}")
                    bad += 1
    print(f"hta: {len(made)} timelines of {lanes} lanes, {bad} differences in their shares", flush=True)
    return bad
