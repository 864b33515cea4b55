"""Profiler traces: shares by hand, simulated timelines read back to their own figures, and rows for `validate`."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.case import Case
from calibration.runs import read_cases
from dashboards.trace_lanes import lane_shares, lanes_of, write_lane_traces
from hwprofiles.errors import UserError
from planner.cli.compare_measured import beside, in_kernels, layer_level
from planner.imports import profiler_trace as module
from planner.imports.profiler_trace import Measured, rank_trace, read_traces
from planner.imports.run_row import row_text, run_row
from sim.plan import Plan
from sim.run import simulate
from sim.scenario import Scenario
from tests.planner.handed import handover
from tests.planner_cli.running import SMALL, moecast


def event(name: str, start: float, length: float, cat: str = "kernel") -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": length, "pid": 0, "tid": 1, "args": {}}


def tree(rank: int = 0, world: int = 32, steps: int = 2) -> dict[str, Any]:
    """Two steps of 100 us: compute 0..40, all-to-all 30..70, copy 70..80, compute 90..100; twice."""
    events: list[Any] = [{"ph": "M", "name": "process_name"}, "noise", event("aten::mm", 0, 5, "cpu_op")]
    for step in range(2):
        at = 1000.0 + 100 * step
        events += [
            event("gemm", at, 40), event("ncclDevKernel_SendRecv(x)", at + 30, 40), event("add", at + 90, 10),
            event("Memcpy HtoD", at + 70, 10, "gpu_memcpy"),
        ]  # fmt: skip
        if step < steps:
            events.append(event(f"ProfilerStep#{step + 5}", at - 3, 104, "user_annotation"))
    return {"distributedInfo": {"rank": rank, "world_size": world}, "traceEvents": events}


def test_shares_by_hand() -> None:
    found = rank_trace(tree(rank=3))
    assert (found.rank, found.world, found.steps) == (3, 32, 2)
    assert found.step_s == pytest.approx(104e-6)
    shares = found.shares
    assert shares.compute == pytest.approx(100 / 200) and shares.idle == pytest.approx(20 / 200)
    assert shares.other == pytest.approx(80 / 200) and shares.overlap == pytest.approx(10 / 40)
    assert found.busy_s == {"send_recv": pytest.approx(40e-6)}
    assert found.alone_s == {"send_recv": pytest.approx(30e-6)}
    assert found.kernels["gemm"] == pytest.approx(40e-6)


def test_without_annotated_steps_all_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(tree(steps=0)))
    found = read_traces(str(tmp_path))
    assert found.step_s == pytest.approx(200e-6) and "ProfilerStep" in found.notes[0]


PLANS = (
    Plan(tp=2, pp=2, dp=8, ep=8, edp=2, micro_batch_seqs=2, recompute=("full",)),
    Plan(pp=4, vpp=3, dp=8, ep=8, edp=1, schedule="interleaved", recompute=("moe_act", "layernorm")),
    Plan(pp=2, dp=16, ep=8, edp=2, stages=(25, 23), zero_stage=1),
    Plan(dp=32, ep=8, edp=4, zero_stage=3),
)


@pytest.mark.parametrize("plan", PLANS, ids=Plan.label)
def test_a_run_becomes_the_row_of_its_plan(plan: Plan, tmp_path: Path) -> None:
    asked = handover(plan, precision="fp8" if plan.pp == 1 else "bf16")
    row = run_row(asked, 1.25, "mine, with a comma")
    (tmp_path / "runs.csv").write_text(row_text(row))
    (case,) = read_cases(tmp_path / "runs.csv")
    assert isinstance(case, Case) and case.id == "mine, with a comma"
    known = {k: v for k, v in case.known.items() if v is not None}
    for name in ("tp", "pp", "vpp", "cp", "ep", "etp", "micro_batch_seqs", "recompute", "zero_stage", "stages"):
        assert known.get(name, getattr(Plan(), name)) == getattr(plan, name), name
    assert (case.model.name, case.workload) == (asked.model.name, asked.workload)
    assert (case.cluster.num_devices, case.software.name) == (32, asked.software.name)
    assert case.measured == pytest.approx(64 * 4096 / 1.25 / 32, rel=1e-5)


def test_simulated_timelines_read_back_to_their_own_shares(tmp_path: Path) -> None:
    asked = handover(PLANS[0])
    report = simulate(
        Scenario(
            model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=asked.plan
        ),
        steady=False,
    )  # fmt: skip
    write_lane_traces(report, tmp_path, compress=True)
    found = read_traces(str(tmp_path))
    assert len(found.ranks) == len(lanes_of(report)) == 2
    for lane, rank in enumerate(found.ranks):
        own = lane_shares(report, lane)
        for name in ("compute", "idle", "other", "overlap"):
            assert getattr(rank.shares, name) == pytest.approx(getattr(own, name), abs=1e-6)
    assert found.step_s == pytest.approx(report.step_s.value, rel=1e-6)


@pytest.mark.parametrize("plan", (PLANS[0], PLANS[3]), ids=Plan.label)
def test_simulated_shares_are_those_of_the_report(plan: Plan) -> None:
    """Expert all-to-all inside passes is communication on the simulated side too, exposed and in kernels."""
    asked = handover(plan)
    scenario = Scenario(
        model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=plan
    )
    report = simulate(scenario, trace=False)
    layers, why = layer_level(scenario)
    assert layers is not None and why == ""
    said = beside(Measured(ranks=(rank_trace(tree()),), notes=()), report, layers)["simulated"]
    shares, step_s = said["shares"], report.step_s.value
    exposed = sum(report.exposed_comm_s.values())
    contended = report.breakdown.get("link contention", 0.0)
    assert report.exposed_comm_s["ep"] > 0.0
    assert shares["other"] == pytest.approx((exposed + contended) / step_s)
    assert shares["compute"] + shares["other"] + shares["idle"] == pytest.approx(1.0)
    assert 0.0 <= shares["overlap"] <= 1.0 and shares["idle"] > 0.0
    # exposed all-to-all is what kernels do alone, in the layer-level run as in the report
    assert said["alone_s"]["send_recv"] == pytest.approx(report.exposed_comm_s["ep"], rel=0.25)
    assert all(0.0 <= said["alone_s"][kind] <= busy for kind, busy in said["busy_s"].items())


def test_layer_level_lanes_are_summed_up_as_a_trace_of_them(tmp_path: Path) -> None:
    asked = handover(PLANS[3])
    scenario = Scenario(
        model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=asked.plan
    )
    layers, _ = layer_level(scenario)
    assert layers is not None
    write_lane_traces(replace(simulate(scenario), trace=layers), tmp_path)
    own, read = in_kernels(layers), read_traces(str(tmp_path))
    assert own["busy_s"] == pytest.approx(read.busy_s, rel=1e-3)
    assert own["busy_s"]["send_recv"] > 0.0


def test_a_step_too_large_for_layers_keeps_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.detail.MOST_TASKS", 10)
    asked = handover(PLANS[3])
    scenario = Scenario(
        model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=asked.plan
    )
    layers, why = layer_level(scenario)
    assert layers is None and "too many" in why
    said = beside(Measured(ranks=(rank_trace(tree()),), notes=()), simulate(scenario, trace=False), None, why)
    assert said["simulated"]["busy_s"] == {} and said["simulated"]["shares"]["overlap"] is None
    assert said["simulated"]["shares"]["other"] > 0.0 and said["simulated"]["notes"] == [why]


def test_the_verb_shows_both_and_writes_a_row(tmp_path: Path) -> None:
    plan, traces, out = tmp_path / "plan.json", tmp_path / "traces", tmp_path / "run.csv"
    pins = ("--tp", "2", "--pp", "2", "--ep", "8", "--micro-batch", "1", "--software", "megatron-lm")
    done = moecast("plan", *SMALL, *pins, "--out", str(plan), "--trace-lanes", str(traces))
    assert done.code == 0, done.err
    done = moecast("compare", "--measured", str(traces), str(plan), "--out", str(out), "--json", str(tmp_path / "j"))
    assert done.code == 0 and "ratio 1.000" in done.out and "inside" in done.out, done.err
    data = json.loads((tmp_path / "j").read_text())
    record = json.loads(plan.read_text())["plans"][0]
    assert data["simulated"]["breakdown"] == pytest.approx(record["breakdown"], rel=1e-6)
    assert data["simulated"]["exposed_comm_s"]["ep"] == pytest.approx(record["exposed_comm_s"]["ep"], rel=1e-6)
    assert "EP " in done.out and data["simulated"]["notes"] == []
    done = moecast("validate", str(out), "--json", "-")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["status"] == "ok" and abs(row["error"]) < 0.01
    (traces / "odd.json").write_text(json.dumps(tree(world=64)))
    done = moecast("compare", "--measured", str(traces), f"{plan}#1")
    assert done.code == 2 and "traces of runs of 32, 64 ranks" in done.err
    for words, said in (
        ((f"{plan}#9",), "plans 1 to"),
        ((str(plan), str(plan)), "leave one of the two"),
        ((str(tmp_path / "none.json"),), "cannot read"),
    ):  # fmt: skip
        done = moecast("compare", "--measured", str(traces), *words)
        assert done.code == 2 and said in done.err, done.err


def test_options_of_a_measured_run_need_one() -> None:
    done = moecast("compare", "a.json", "b.json", "--id", "x", "--out", "y.csv")
    assert done.code == 2 and "--id, --out" in done.err
    done = moecast("compare", "a.json")
    assert done.code == 2 and "give a second one, or --measured" in done.err


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b"[]", "no traceEvents"),
        ("a.json", b'{"traceEvents": []}', "no slice of a device"),
        ("a.json", b"\x80\x04.", "a pickle"),
        ("a.pt", b"{}", "a pickle"),
        ("a.json", b"PK\x03\x04...", "a pickle"),
        ("a.json.gz", b"\x1f\x8b" + b"0" * 20, "cannot be read"),
        ("a.json.gz", gzip.compress(b"{" + b" " * 99_999), "refused"),
        ("a.json", b"{" + b" " * 99_999, "refused"),
    ],
)
def test_what_is_no_trace_is_refused(
    name: str, data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    monkeypatch.setattr(module, "MAX_BYTES", 2**16 if said == "refused" else 2**20)
    with pytest.raises(UserError, match=said):
        read_traces(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="0 files"):
        read_traces(str(tmp_path / "empty"))
