"""JSON Schema of the plan file: what a reader in any language may rely on.

Built from small pieces, so that it stands beside the code that writes the file; `moecast schema` prints it and
docs/reference/plan.schema.json is that text. Keys that are not named may stand beside those that are.
"""

from __future__ import annotations

import json
from typing import Any

from hwprofiles.errors import UserError
from planner.planfile import FORMAT

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOL: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
POSITIVE: Schema = {"type": "number", "minimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 0}
DEGREE: Schema = {"type": "integer", "minimum": 1}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ANY_OBJECT: Schema = {"type": "object"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _object(keys: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object whose `keys` must be there; `optional` ones may be."""
    return {"type": "object", "required": list(keys), "properties": keys | (optional or {})}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _plan() -> Schema:
    degrees = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs")
    return _object(
        {
            **dict.fromkeys(degrees, DEGREE), "schedule": TEXT, "recompute": _list(TEXT), "zero_stage": COUNT,
            "fsdp_shard": COUNT, "stages": _or_null(_list(COUNT)), "account_ends": BOOL,
        },
        {"micro_batch_group": COUNT},
    )  # fmt: skip


def _record() -> Schema:
    return _object(
        {
            "rank": _or_null(DEGREE), "label": TEXT, "plan": _ref("plan"), "stages": _list(COUNT),
            "pipeline_layout": TEXT, "num_micro_batches": DEGREE, "step_s": _ref("estimate"),
            "tokens_per_s_per_gpu": _ref("estimate"), "mfu": _ref("estimate"), "tflops_per_gpu": POSITIVE,
            "usd_per_step": _or_null(POSITIVE), "peak_mem_bytes": POSITIVE,
            "peak_mem_interval_bytes": _or_null(_list(POSITIVE, minItems=2, maxItems=2)),
            "mem_capacity_bytes": POSITIVE, "usable_mem_bytes": POSITIVE, "bubble_fraction": POSITIVE,
            "exposed_comm_s": _map(POSITIVE), "breakdown": _map(NUMBER), "memory": _list(_map(POSITIVE)),
            "link_use": _map(_object({"bytes": POSITIVE, "utilisation": POSITIVE, "lane": POSITIVE})),
            "bound_s": _or_null(POSITIVE), "fits": BOOL,
            "out_of_memory": _or_null(
                _object({"lane": COUNT, "tag": TEXT, "need_bytes": POSITIVE, "have_bytes": POSITIVE})
            ),
            "provenance": _list(TEXT), "warnings": _list(TEXT), "imbalance": _or_null(ANY_OBJECT), "rank_order": TEXT,
            "host_map": _or_null(_object({"source": TEXT, "digest": TEXT, "runs": _list(_list(COUNT))})),
            "hosts": _or_null(_list(TEXT)), "anchored": _or_null(ANY_OBJECT), "training": _or_null(_ref("training")),
        },
        {"host_mem_bytes": POSITIVE, "host_mem_capacity_bytes": POSITIVE,
         "chosen": _or_null(_object({"label": TEXT, "software": ANY_OBJECT, "workload": ANY_OBJECT}))},
    )  # fmt: skip


def _training() -> Schema:
    return _object(
        {
            "tokens": POSITIVE, "steps": DEGREE, "devices": DEGREE, "time_s": _ref("estimate or null"),
            "usd": _ref("estimate or null"), "energy_j": _ref("estimate or null"), "energy_rests_on": TEXT,
            "goodput": POSITIVE, "parts": _map(_or_null(NUMBER)), "failures": _or_null(POSITIVE),
            "mtbf_s": _or_null(POSITIVE), "interval_s": POSITIVE, "checkpoint_s": POSITIVE,
            "checkpoint_bytes": POSITIVE, "assumed": _list(TEXT),
        }
    )  # fmt: skip


def _point() -> Schema:
    return _object(
        {
            "devices": DEGREE, "label": TEXT, "plan": _ref("plan"), "rank_order": TEXT, "step_s": POSITIVE,
            "peak_mem_bytes": POSITIVE, "time_s": _or_null(POSITIVE), "usd": _or_null(POSITIVE),
            "energy_j": _or_null(POSITIVE), "keeps": BOOL,
        },
        {"cluster": TEXT, "chosen": TEXT},
    )  # fmt: skip


def _inputs() -> Schema:
    return _object(
        {
            "model": TEXT, "cluster": TEXT, "devices": DEGREE, "software": TEXT, "target": TEXT,
            "workload": _object({"seq_tokens": DEGREE, "global_batch_seqs": DEGREE, "precision": TEXT},
                                {"kind": TEXT, "optimizer": {"anyOf": [TEXT, ANY_OBJECT]}, "with_mtp": BOOL,
                                 **dict.fromkeys(("lora", "lengths", "offload", "ramp_up"), ANY_OBJECT)}),
            "options": ANY_OBJECT, "digest": DIGEST, "digests": _map(DIGEST),
        }
    )  # fmt: skip


def _search() -> Schema:
    counts = dict.fromkeys(("raw", "legal", "fits", "simulated"), COUNT)
    return _object(
        {
            **counts, "bound_s": POSITIVE, "gap": POSITIVE,
            "certificate": {"enum": ["exact", "best exact", "gap", "void"]},
            "stopped": {"enum": ["bound", "table", "limit", "interrupted"]}, "rejected": _map(COUNT),
        }
    )  # fmt: skip


def _stages() -> Schema:
    programme = _object(
        {"objective_s": POSITIVE, "bound_s": _or_null(POSITIVE), "gap": _or_null(NUMBER), "status": TEXT,
         "nodes": COUNT, "solver": TEXT}
    )  # fmt: skip
    row = _object(
        {
            "label": TEXT, "outcome": TEXT, "step_s": _or_null(POSITIVE), "even_s": _or_null(POSITIVE),
            "free_bound_s": _or_null(POSITIVE), "stages": _list(COUNT), "recompute": _list(TEXT),
            "programme": _or_null(programme),
        }
    )  # fmt: skip
    return _object(
        {
            "way": {"enum": ["auto", "ilp"]}, "even_s": POSITIVE, "even_gap": POSITIVE, "even_certificate": TEXT,
            "bound_s": POSITIVE, "gap": NUMBER, "rows": _list(row),
            "stopped": {"enum": ["listed", "bound", "limit", "interrupted"]},
        },
        {"bounded": COUNT},
    )  # fmt: skip


def _switches() -> Schema:
    trial = _object({"rank": DEGREE, "switches": _list(TEXT), "said": _list(TEXT), "step_s": POSITIVE, "gain": NUMBER,
                     "label": TEXT})  # fmt: skip
    return _object(
        {
            "applied": _list(TEXT), "tried": COUNT, "plans": DEGREE, "singles": _list(trial), "best": _or_null(trial),
            "searched": _list(TEXT), "certificate": TEXT,
        }
    )  # fmt: skip


def plan_schema() -> Schema:
    """The schema of a plan file of format `planner.planfile.FORMAT`."""
    candidate = {"label": TEXT, "plan": _ref("plan"), "bound_s": POSITIVE, "rank_order": TEXT}
    misfit = _object({**candidate, "need_bytes": POSITIVE, "have_bytes": POSITIVE})
    rule = _object(dict.fromkeys(("text", "where", "remedy", "source", "version"), TEXT))
    count = _object({"devices": DEGREE, "best": _or_null(_ref("point")), "why": TEXT, "certificate": _or_null(TEXT),
                     "gap": _or_null(POSITIVE)},
                    {"cluster": TEXT, "front_gap": _or_null(POSITIVE), "front_open": _or_null(COUNT),
                     "energy_bound_j": _or_null(POSITIVE)})  # fmt: skip
    goal = _object({"objective": TEXT, "deadline_s": _or_null(POSITIVE), "budget_usd": _or_null(POSITIVE),
                    "price_usd_per_s": {"anyOf": [_or_null(POSITIVE), _map(POSITIVE)]},
                    "terms": _or_null(ANY_OBJECT)})  # fmt: skip
    neighbour = _object(
        {"change": TEXT, "outcome": TEXT, "what": TEXT, "bound_s": _or_null(POSITIVE), "step_s": _or_null(POSITIVE),
         "need_bytes": _or_null(POSITIVE)}
    )  # fmt: skip
    variant = _object(
        {"label": TEXT, "step_s": _or_null(POSITIVE), "plan": _or_null(TEXT), "bound_s": _or_null(POSITIVE),
         "certificate": _or_null(TEXT), "why": TEXT}
    )  # fmt: skip
    top = _object(
        {
            "format": {"const": FORMAT}, "inputs": _ref("inputs"), "plans": _list(_ref("record"), minItems=1),
            "search": _ref("search"), "rules": _map(rule), "next_best": _list(_object(candidate)),
            "nearest_out_of_memory": _list(misfit), "faster_out_of_memory": _list(misfit),
            "neighbours": _list(neighbour), "warnings": _list(TEXT), "goal": _or_null(goal), "counts": _list(count),
            "pareto": _list(_ref("point")), "timing": _map(POSITIVE),
        },
        {"stages": _ref("stages"), "variants": _list(variant), "switches": _or_null(_switches())},
    )  # fmt: skip
    bounds = ("value", "low", "high")
    return {
        "$schema": DIALECT,
        "$id": f"urn:moecast:plan:{FORMAT}",
        "title": "Plan file of moecast",
        "description": "Numbers are SI. The same question gives the same bytes, `timing` apart.",
        **top,
        "$defs": {
            "estimate": _object(dict.fromkeys(bounds, NUMBER)),
            "estimate or null": _object(dict.fromkeys(bounds, _or_null(NUMBER))),
            "plan": _plan(),
            "record": _record(),
            "training": _training(),
            "point": _point(),
            "inputs": _inputs(),
            "search": _search(),
            "stages": _stages(),
        },
    }


def schema_text() -> str:
    """The schema as the published file has it."""
    return json.dumps(plan_schema(), indent=1, sort_keys=False) + "\n"


def check_plan(data: Any, *, where: str = "") -> None:
    """Raise UserError naming everything in which a plan file breaks the schema."""
    from jsonschema import Draft202012Validator

    found = sorted(Draft202012Validator(plan_schema()).iter_errors(data), key=lambda e: [str(p) for p in e.path])
    if found:
        problems = [f"{'.'.join(str(p) for p in each.path) or 'the file'}: {each.message}" for each in found]
        raise UserError(problems, where=where)
