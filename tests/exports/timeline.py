"""Exported timelines against HolisticTraceAnalysis: its idle, compute and overlap shares must be the report's."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from dashboards.trace_lanes import lane_shares, lanes_of, write_lane_traces
from sim.plan import Plan
from sim.run import simulate
from sim.scenario import Scenario
from tests.planner.handed import handover

# Two lanes, with communication beside computation and without, and one that is written compressed.
PLANS = (
    Plan(pp=2, dp=16, ep=8, edp=2),
    Plan(tp=2, pp=2, dp=8, ep=8, edp=2, micro_batch_seqs=2),
    Plan(pp=4, vpp=3, dp=8, ep=8, edp=1, schedule="interleaved"),
    Plan(dp=32, ep=8, edp=4),
)
ROUNDING = 0.0051  # percentage points: HTA rounds to two places


def run_hta(python: Path, folder: Path) -> int:
    """Number of timelines that HTA refused or summed up otherwise."""
    rows, reports = [], {}
    for n, plan in enumerate(PLANS):
        asked = handover(plan)
        scenario = Scenario(
            model=asked.model, cluster=asked.cluster, software=replace(asked.software, p2p_overlap=n % 2 == 0),
            workload=asked.workload, plan=plan,
        )  # fmt: skip
        report = simulate(scenario, trace=True, steady=False)
        write_lane_traces(report, folder / str(n), compress=n == 1)
        rows.append({"folder": str(folder / str(n))})
        reports[str(folder / str(n))] = report
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
    for name, report in reports.items():
        answer = said.get(name, {"ok": False, "error": "no answer; see log.txt"})
        if not answer["ok"]:
            print(f"  {report.plan.label()}: {answer['error'][:300]}")
            bad += 1
            continue
        for i, lane in enumerate(lanes_of(report)):
            lanes += 1
            own, theirs = lane_shares(report, lane), answer["ranks"][str(i)]
            for key, value in theirs.items():
                if abs(100 * getattr(own, key) - value) > ROUNDING:
                    print(
                        f"  {report.plan.label()} lane {lane}: {key} {value} instead of {100 * getattr(own, key):.4f}"
                    )
                    bad += 1
    print(f"hta: {len(reports)} timelines of {lanes} lanes, {bad} differences in their shares", flush=True)
    return bad
