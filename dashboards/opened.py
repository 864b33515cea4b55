"""A plan of an answer as knobs: opening it makes the scenario that plan, and nothing else of the question changes.

A plan file that a visitor brings is opened whole: its question too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dashboards import uploads
from dashboards.state import LAYOUT, Knobs
from hwprofiles.errors import UserError
from sim.mesh import DEFAULT_ORDER
from sim.plan import Plan

SHOWN = "plan-shown"  # of the session: (question, answer) of the Plan view; of a file there is no question
_DEGREES = {
    "tp": "tp",
    "pp": "pp",
    "vpp": "vpp",
    "cp": "cp",
    "ep": "ep",
    "etp": "etp",
    "micro_batch": "micro_batch_seqs",
}


def plan_changes(
    knobs: Knobs, plan: Plan, *, devices: int, rank_order: str | None, layers: int
) -> dict[str, str | None]:
    """What to change of the knobs so that they ask for this plan. layers: of the model, which say how stages are filled
    where the plan does not."""
    changes: dict[str, str | None] = dict.fromkeys(LAYOUT)
    changes |= {key: None for key in knobs.values if key.startswith("plan.")}
    changes["gpus"] = str(devices)
    for knob, field in _DEGREES.items():
        if getattr(plan, field) != 1:
            changes[knob] = str(getattr(plan, field))
    changes["recompute"] = ",".join(plan.recompute) or None
    if plan.zero_stage != Plan().zero_stage:
        changes["zero"] = str(plan.zero_stage)
    if plan.schedule != ("interleaved" if plan.vpp > 1 else "1f1b"):
        changes["schedule"] = plan.schedule
    if plan.micro_batch_group:
        changes["micro_batch_group"] = str(plan.micro_batch_group)
    if rank_order and rank_order != DEFAULT_ORDER:
        changes["rank_order"] = rank_order
    if plan.fsdp_shard:
        changes["plan.fsdp_shard"] = str(plan.fsdp_shard)
    if plan.stages is not None:
        changes["plan.stages"] = json.dumps(list(plan.stages))
    if plan.account_ends != (plan.pp > 1 and layers % (plan.pp * plan.vpp) != 0):
        changes["plan.account_ends"] = json.dumps(plan.account_ends)
    return changes


def open_record(knobs: Knobs, data: Mapping[str, Any], part: str, index: int, *, layers: int) -> Knobs:
    """The knobs of a plan of an answer's JSON (`plans` or `pareto`). Raises UserError where there is none."""
    from planner.planfile import plan_from

    try:
        record = data[part][index]
        devices = int(record.get("devices", data["inputs"]["devices"]))
        plan = plan_from(record["plan"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"no such plan ({error}); search again", where=part) from None
    order = record.get("rank_order")
    return knobs.with_(plan_changes(knobs, plan, devices=devices, rank_order=order, layers=layers))


def plan_file(token: str) -> dict[str, Any]:
    """The answer in an uploaded plan file, of which all that the Plan view draws was found. Raises UserError."""
    from dashboards.plan_points import points_of
    from dashboards.plan_rows import plan_grid, search_line
    from planner.explain import explain
    from planner.planfile import load_plan

    path, name = str(uploads.path(token)), uploads.shown(token)
    try:
        data = load_plan(path)
    except UserError as error:  # where it lies is not the visitor's to know
        raise UserError([problem.replace(path, name) for problem in error.problems], where=name) from None
    try:
        points_of(data)
        plan_grid(data["plans"], float(data["plans"][0]["usable_mem_bytes"]))
        search_line(data["search"])
        explain(data)
        sum(data["plans"][0]["stages"])
        asked_of_file(data)
    except MANGLED as error:
        raise UserError(f"a field is missing or mangled ({type(error).__name__}: {str(error)[:80]}); write the file "
                        "again with `moecast plan --out`", where=name) from None  # fmt: skip
    return data


MANGLED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)


def asked_of_file(data: Mapping[str, Any]) -> Knobs:
    """The knobs of the question of a plan file and of its best plan. Raises UserError, or one of `MANGLED`.

    Names are those of the catalogue; what was a file of the command line's machine must be uploaded where its knob is.
    """
    inputs = data["inputs"]
    work = inputs["workload"]
    texts: dict[str, Any] = {
        "model": inputs["model"], "cluster": inputs["cluster"], "gpus": inputs["devices"],
        "software": inputs["software"], "target": inputs["target"], "seq_len": work["seq_tokens"],
        "global_batch": work["global_batch_seqs"], "precision": work["precision"],
        "routing": inputs.get("options", {}).get("routing", ""),
    }  # fmt: skip
    if texts["routing"] == "forced balance":
        texts["routing"] = "balanced"
    if isinstance(work.get("optimizer"), str):
        texts["optimizer"] = work["optimizer"]
    knobs = Knobs.of({key: str(value) for key, value in texts.items()})
    return open_record(knobs, data, "plans", 0, layers=sum(data["plans"][0]["stages"]))
