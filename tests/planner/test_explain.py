"""The plan file and the explanation made from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.errors import UserError
from planner import find_plans, load_plan, plan_json, save_plan
from planner.explain import explain, waterfall
from planner.planfile import inputs_digest, plan_fields, plan_from, plan_text
from planner.search import PlanResult
from tests.planner.toy import (
    CAPACITY_BYTES,
    make_cluster,
    make_model,
    make_software,
    make_workload,
    toy_report,
    toy_screen,
)


def answer(**options: Any) -> PlanResult:
    """The toy question."""
    return find_plans(
        make_model(),
        make_cluster(),
        make_software(),
        make_workload(),
        simulate_fn=toy_report,
        screen_fn=toy_screen,
        capacity_bytes=CAPACITY_BYTES,
        **options,
    )


def test_the_file_is_the_same_byte_for_byte_but_for_timing() -> None:
    one, two = plan_json(answer()), plan_json(answer())
    assert one.pop("timing")["seconds"] > 0 and two.pop("timing")
    assert plan_text(one) == plan_text(two)


def test_the_digest_follows_every_input() -> None:
    base = answer()
    digests = {
        inputs_digest(base),
        inputs_digest(replace(base, model=make_model(ffn_dim=1024))),
        inputs_digest(replace(base, cluster=make_cluster(4))),
        inputs_digest(replace(base, software=make_software(fused_experts=True))),
        inputs_digest(replace(base, workload=make_workload(seq_tokens=2048))),
        inputs_digest(replace(base, target="layout")),
        inputs_digest(answer(fixed={"tp": 1})),
    }
    assert len(digests) == 7
    assert inputs_digest(base) == inputs_digest(answer())


def test_the_file_has_the_promised_fields(tmp_path: Path) -> None:
    data = plan_json(answer())
    path = tmp_path / "plan.json"
    save_plan(data, path)
    assert load_plan(path) == data
    assert {"raw", "legal", "fits", "simulated", "bound_s", "gap", "rejected"} <= set(data["search"])
    first = data["plans"][0]
    assert first["rank"] == 1 and set(first["step_s"]) == {"value", "low", "high"}
    for key in ("tokens_per_s_per_gpu", "mfu", "peak_mem_bytes", "bubble_fraction", "exposed_comm_s", "provenance"):
        assert key in first
    assert set(data["rules"]) == {r for r in data["search"]["rejected"] if not r.startswith("out of memory")}


def test_a_plan_survives_the_file() -> None:
    plan = replace(answer().plans[0].report.plan, stages=(4, 4), recompute=("moe_act", "layernorm"))
    assert plan_from(json.loads(json.dumps(plan_fields(plan)))) == plan
    with pytest.raises(UserError, match="tpp"):
        plan_from({"tpp": 1})


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1]", b"{}", b'{"plans": [], "search": {}, "inputs": {}}'])
def test_other_files_are_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="moecast plan"):
        load_plan(path)


def test_missing_files_and_folders_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load_plan(tmp_path / "none.json")
    with pytest.raises(UserError):
        save_plan({}, tmp_path / "no" / "folder.json")


def test_the_waterfall_sums_to_the_step() -> None:
    told = explain(answer())
    assert told.waterfall[-1].until_s == pytest.approx(told.step_s, rel=1e-9)
    assert sum(bar.share for bar in told.waterfall) == pytest.approx(1.0)
    assert [b.seconds for b in told.waterfall] == sorted((b.seconds for b in told.waterfall), reverse=True)


def test_time_a_breakdown_forgets_is_shown() -> None:
    bars = waterfall({"step_s": {"value": 2.0}, "breakdown": {"gemm": 1.5, "host": 0.0}})
    assert [(b.name, b.seconds) for b in bars] == [("gemm", 1.5), ("not attributed", 0.5)]


def test_explaining_the_file_equals_explaining_the_result() -> None:
    result = answer()
    assert explain(result) == explain(json.loads(plan_text(plan_json(result))))


def test_the_explanation_names_rules_memory_and_near_plans() -> None:
    result = answer(max_simulated=None)
    told = explain(result)
    assert sum(r.count for r in told.rejected) == result.search.raw - result.search.fits
    assert all(r.text and r.source for r in told.rejected)
    assert any(n.need_bytes is not None and n.need_bytes > CAPACITY_BYTES for n in told.near)
    assert any("slower than the best" in n.why for n in told.near)
    assert any(text.startswith("memory: ") for text in told.binding)
    assert told.certificate.startswith("exact")


def test_a_gap_is_never_called_proven() -> None:
    told = explain(answer(max_simulated=1, top=1))
    assert told.certificate.startswith("not proven")
    assert "optimal" not in json.dumps(told.to_json())


def test_a_mangled_file_is_a_user_error() -> None:
    data = plan_json(answer())
    del data["plans"][0]["breakdown"]
    with pytest.raises(UserError, match="moecast plan"):
        explain(data)
