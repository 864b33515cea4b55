"""What is searched besides degrees: every combination, proved over all, written so that it is read back as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from hwprofiles.errors import NoPlanError, UserError
from planner.export.handover import handover_from
from planner.planfile import load_plan
from planner.schema import check_plan
from planner.search import PlanResult, find_plans
from planner.variants import DISPATCHERS, OFFLOADS, Variant, best_of, variants_of
from sim.plan import Plan
from sim.report import Report
from sim.workload import Offload
from tests.planner.toy import (
    make_cluster,
    make_dense,
    make_model,
    make_software,
    make_workload,
    toy_report,
    toy_screen,
    toy_step_s,
)
from tests.planner_cli.running import moecast


def search(factor: float, *, max_simulated: int | None = 400) -> PlanResult:
    """The toy question with every step longer by a factor, and bounds as they were."""

    def simulate(plan: Plan) -> Report:
        return toy_report(plan, step_s=toy_step_s(plan) * factor)

    return find_plans(
        make_model(), make_cluster(), make_software(), make_workload(), top=2, simulate_fn=simulate,
        screen_fn=toy_screen, capacity_bytes=10.0, max_simulated=max_simulated,
    )  # fmt: skip


def test_every_combination_stands_once_the_own_first() -> None:
    model, software, workload = make_model(), make_software(dispatcher="deepep"), make_workload()
    found = variants_of(("dispatcher", "offload"), model, software, workload, {})
    assert found[0] == Variant(switches=(("dispatcher", "deepep"),), offload=Offload())
    assert {(v.switches[0][1], v.offload) for v in found} == set(product(DISPATCHERS, OFFLOADS))
    assert len({v.label for v in found}) == len(found) == len(DISPATCHERS) * len(OFFLOADS)
    kinds = variants_of(("recompute",), model, software, workload, {})
    modules = [v.recompute for v in kinds]
    assert len(set(modules)) == len(modules) and ("layernorm",) in modules and ("full",) in modules
    assert not any("mla_up_proj" in (m or ()) for m in modules), "the model has no such module"


def test_what_contradicts_is_named_at_once() -> None:
    workload = make_workload(offload=Offload(optimizer=1.0))
    with pytest.raises(UserError) as caught:
        variants_of(("dispatcher", "offload", "recompute", "fun"), make_dense(), make_software(), workload,
                    {"recompute": ()})  # fmt: skip
    said = "\n".join(caught.value.problems)
    for piece in ("'fun'", "--recompute", "--offload", "no experts"):
        assert piece in said, piece


def test_the_best_is_proved_only_where_every_search_is() -> None:
    variants = variants_of(("offload",), make_model(), make_software(), make_workload(), {})[:3]
    factors = dict(zip(variants, (1.2, 1.0, 1.1), strict=True))
    found = best_of(variants, lambda v: search(factors[v]))
    alone = search(1.0)
    assert found.plans[0].report == alone.plans[0].report
    assert found.search.certificate == "best exact" and found.search.gap == 0.0
    assert found.search.raw == 3 * alone.search.raw
    assert [line["step_s"] for line in found.variants] == [search(f).plans[0].report.step_s.value
                                                           for f in (1.2, 1.0, 1.1)]  # fmt: skip
    stopped = best_of(variants, lambda v: search(factors[v], max_simulated=1 if factors[v] > 1.0 else 400))
    assert stopped.search.certificate == "gap" and stopped.search.gap > 0.0
    assert stopped.search.bound_s == min(search(f, max_simulated=1).search.bound_s for f in (1.2, 1.1))


def test_a_combination_without_a_plan_is_a_line() -> None:
    variants = variants_of(("offload",), make_model(), make_software(), make_workload(), {})[:2]

    def some(variant: Variant) -> PlanResult:
        if variant == variants[0]:
            raise NoPlanError("nothing fits")
        return search(1.0)

    found = best_of(variants, some)
    assert found.variants[0]["why"] == "nothing fits" and found.variants[1]["why"] == ""

    def none(variant: Variant) -> PlanResult:
        raise NoPlanError(f"nothing fits {variant.label}")

    with pytest.raises(NoPlanError, match="offload nothing"):
        best_of(variants, none)


def test_the_plan_file_is_read_back_with_the_dispatcher_that_was_found(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    done = moecast("plan", "--model", "Mixtral-8x7B", "--cluster", "dgx-h100", "--gpus", "16", "--global-batch", "32",
                   "--tp", "2", "--ep", "8", "--pp", "1", "--cp", "1", "--etp", "1", "--micro-batch", "1", "--search",
                   "dispatcher", "--software", "megatron-lm", "--top", "1", "--out", str(out))  # fmt: skip
    assert done.code == 0, done.err
    assert "Searched besides" in done.out
    data = load_plan(out)
    check_plan(data)
    steps = {line["label"]: line["step_s"] for line in data["variants"]}
    assert len(steps) == 4
    best = min((label for label in steps if steps[label]), key=lambda label: steps[label])
    asked, stale = handover_from(data)
    assert best == f"dispatcher {asked.software.dispatcher}" and stale == ""
    assert data["plans"][0]["step_s"]["value"] == steps[best]
    other = json.loads(json.dumps(data))
    other["inputs"]["options"]["profile"] = {"dispatcher": "allgather"}
    again, warned = handover_from(other)
    assert again.software == replace(asked.software, dispatcher="allgather") and warned
