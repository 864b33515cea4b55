"""JSON Schema of the plan file: what a reader in any language may rely on.

Built from small pieces, so that it stands beside the code that writes the file; `moecast schema` prints it and
docs/reference/plan.schema.json is that text. Objects that this program writes are closed: a key that is not named is an
error, unless it begins with `x-`, which is for others to add. A reader is given values to refuse and keys to leave
alone (`check_values`): a later release may have added some within the format (`planner.migrate`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.software_profiles import SWITCH_NAMES
from planner.planfile import FORMAT

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
BOOL: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
AMOUNT: Schema = {"type": "number", "minimum": 0}
SHARE: Schema = {"type": "number", "maximum": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
DEGREE: Schema = {"type": "integer", "minimum": 1}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ANY_OBJECT: Schema = {"type": "object"}
OTHERS: Schema = {"^x-": {}}  # keys that are not ours
REMEDY = "the file was changed after it was written, or was not written whole; write it again"
MIX_FORMAT = 1
MOST_SAID = 12  # of what a file breaks


def _or_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str):  # limits of numbers and keys of objects say nothing of null
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _within(*schemas: Schema) -> Schema:
    return {name: value for schema in schemas for name, value in schema.items()}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _object(keys: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object whose `keys` must be there; `optional` ones may be, and those of others (`x-...`)."""
    return {
        "type": "object", "required": list(keys), "properties": keys | (optional or {}),
        "patternProperties": dict(OTHERS), "additionalProperties": False,
    }  # fmt: skip


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
            "usd_per_step": _or_null(AMOUNT), "peak_mem_bytes": AMOUNT,
            "peak_mem_interval_bytes": _or_null(_list(AMOUNT, minItems=2, maxItems=2)),
            "mem_capacity_bytes": POSITIVE, "usable_mem_bytes": POSITIVE, "bubble_fraction": _within(AMOUNT, SHARE),
            "exposed_comm_s": _map(AMOUNT), "breakdown": _map(NUMBER), "memory": _list(_map(AMOUNT)),
            "link_use": _map(_object({"bytes": AMOUNT, "utilisation": AMOUNT, "lane": AMOUNT})),
            "bound_s": _or_null(POSITIVE), "fits": BOOL,
            "out_of_memory": _or_null(
                _object({"lane": COUNT, "tag": TEXT, "need_bytes": AMOUNT, "have_bytes": AMOUNT})
            ),
            "provenance": _list(TEXT), "warnings": _list(TEXT), "imbalance": _or_null(ANY_OBJECT), "rank_order": TEXT,
            "host_map": _or_null(_object({"source": TEXT, "digest": TEXT, "runs": _list(_list(COUNT))})),
            "hosts": _or_null(_list(TEXT)), "anchored": _or_null(ANY_OBJECT), "training": _or_null(_ref("training")),
        },
        {"host_mem_bytes": AMOUNT, "host_mem_capacity_bytes": AMOUNT,
         "chosen": _or_null(_object({"label": TEXT, "software": _switches_stated(),
                                    "workload": _object({}, {"precision": TEXT, "offload": ANY_OBJECT})}))},
    )  # fmt: skip


def _switches_stated() -> Schema:
    """Any switches of a software profile; what values each may have is asked when they are read."""
    return _object({}, {name: {} for name in SWITCH_NAMES})


def _training() -> Schema:
    return _object(
        {
            "tokens": AMOUNT, "steps": DEGREE, "devices": DEGREE, "time_s": _ref("estimate or null"),
            "usd": _ref("estimate or null"), "energy_j": _ref("estimate or null"), "energy_rests_on": TEXT,
            "goodput": AMOUNT, "parts": _map(_or_null(NUMBER)), "failures": _or_null(AMOUNT),
            "mtbf_s": _or_null(AMOUNT), "interval_s": AMOUNT, "checkpoint_s": AMOUNT,
            "checkpoint_bytes": AMOUNT, "assumed": _list(TEXT),
        }
    )  # fmt: skip


def _point() -> Schema:
    return _object(
        {
            "devices": DEGREE, "label": TEXT, "plan": _ref("plan"), "rank_order": TEXT, "step_s": POSITIVE,
            "peak_mem_bytes": AMOUNT, "time_s": _or_null(AMOUNT), "usd": _or_null(AMOUNT),
            "energy_j": _or_null(AMOUNT), "keeps": BOOL,
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
            **counts, "bound_s": AMOUNT, "gap": _within(AMOUNT, SHARE),
            "certificate": {"enum": ["exact", "best exact", "gap", "void"]},
            "stopped": {"enum": ["bound", "table", "limit", "interrupted"]}, "rejected": _map(COUNT),
        }
    )  # fmt: skip


def _stages() -> Schema:
    programme = _object(
        {"objective_s": AMOUNT, "bound_s": _or_null(AMOUNT), "gap": _or_null(NUMBER), "status": TEXT,
         "nodes": COUNT, "solver": TEXT}
    )  # fmt: skip
    row = _object(
        {
            "label": TEXT, "outcome": TEXT, "step_s": _or_null(POSITIVE), "even_s": _or_null(POSITIVE),
            "free_bound_s": _or_null(AMOUNT), "stages": _list(COUNT), "recompute": _list(TEXT),
            "programme": _or_null(programme),
        }
    )  # fmt: skip
    return _object(
        {
            "way": {"enum": ["auto", "ilp"]}, "even_s": POSITIVE, "even_gap": AMOUNT, "even_certificate": TEXT,
            "bound_s": AMOUNT, "gap": NUMBER, "rows": _list(row),
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
    candidate = {"label": TEXT, "plan": _ref("plan"), "bound_s": AMOUNT, "rank_order": TEXT}
    misfit = _object({**candidate, "need_bytes": AMOUNT, "have_bytes": AMOUNT})
    rule = _object(dict.fromkeys(("text", "where", "remedy", "source", "version"), TEXT))
    count = _object({"devices": DEGREE, "best": _or_null(_ref("point")), "why": TEXT, "certificate": _or_null(TEXT),
                     "gap": _or_null(AMOUNT)},
                    {"cluster": TEXT, "front_gap": _or_null(AMOUNT), "front_open": _or_null(COUNT),
                     "energy_bound_j": _or_null(AMOUNT)})  # fmt: skip
    goal = _object({"objective": TEXT, "deadline_s": _or_null(AMOUNT), "budget_usd": _or_null(AMOUNT),
                    "price_usd_per_s": {"anyOf": [_or_null(AMOUNT), _map(AMOUNT)]},
                    "terms": _or_null(ANY_OBJECT)})  # fmt: skip
    neighbour = _object(
        {"change": TEXT, "outcome": TEXT, "what": TEXT, "bound_s": _or_null(AMOUNT), "step_s": _or_null(AMOUNT),
         "need_bytes": _or_null(AMOUNT)}
    )  # fmt: skip
    variant = _object(
        {"label": TEXT, "step_s": _or_null(POSITIVE), "plan": _or_null(TEXT), "bound_s": _or_null(AMOUNT),
         "certificate": _or_null(TEXT), "why": TEXT}
    )  # fmt: skip
    top = _object(
        {
            "format": {"const": FORMAT}, "inputs": _ref("inputs"), "plans": _list(_ref("record"), minItems=1),
            "search": _ref("search"), "rules": _map(rule), "next_best": _list(_object(candidate)),
            "nearest_out_of_memory": _list(misfit), "faster_out_of_memory": _list(misfit),
            "neighbours": _list(neighbour), "warnings": _list(TEXT), "goal": _or_null(goal), "counts": _list(count),
            "pareto": _list(_ref("point")), "timing": _map(AMOUNT),
        },
        {"stages": _ref("stages"), "variants": _list(variant), "switches": _or_null(_switches()),
         "placement": ANY_OBJECT},
    )  # fmt: skip
    bounds = ("value", "low", "high")
    return {
        "$schema": DIALECT,
        "$id": f"urn:moecast:plan:{FORMAT}",
        "title": "Plan file of moecast",
        "description": "Numbers are SI. The same question gives the same bytes, `timing` apart.",
        **top,
        "$defs": {
            "estimate": _object(dict.fromkeys(bounds, POSITIVE)),
            "estimate or null": _object(dict.fromkeys(bounds, _or_null(AMOUNT))),
            "plan": _plan(),
            "record": _record(),
            "training": _training(),
            "point": _point(),
            "inputs": _inputs(),
            "search": _search(),
            "stages": _stages(),
        },
    }


def mix_schema() -> Schema:
    """The schema of an answer of `moecast mix` (`planner.mixed.mixfile`)."""
    plan = plan_schema()
    defs = {name: plan["$defs"][name] for name in ("estimate", "estimate or null", "plan", "record", "training")}
    record, link = defs["record"], _object({"bytes_per_s": POSITIVE, "latency_s": AMOUNT})
    load = _object({"pool": TEXT, "layers": _list(COUNT), "busy_s": AMOUNT, "peak_bytes": AMOUNT,
                    "usable_bytes": POSITIVE})  # fmt: skip
    programme = _object({"way": {"enum": ["path", "form"]}, "objective_s": POSITIVE, "bound_s": AMOUNT,
                         "gap": _within(AMOUNT, SHARE), "status": {"enum": ["optimal", "limit"]}})  # fmt: skip
    more = {"pool_of_stage": _list(TEXT, minItems=2), "even_s": _or_null(POSITIVE), "programme": programme,
            "stage_loads": _list(load, minItems=2)}  # fmt: skip
    defs["record"] = record | {"required": record["required"] + list(more), "properties": record["properties"] | more}
    pool = _object({"cluster": TEXT, "devices": DEGREE, "software": TEXT, "digests": _map(DIGEST)})
    inputs = _object({"model": TEXT, "pools": _list(pool, minItems=2), "between": _or_null(link), "target": TEXT,
                      "workload": _inputs()["properties"]["workload"], "options": ANY_OBJECT})  # fmt: skip
    alone = _object({"label": _or_null(TEXT), "step_s": _or_null(POSITIVE), "why": TEXT})
    search = _object(
        {**dict.fromkeys(("raw", "legal", "tried"), COUNT), "bound_s": POSITIVE, "gap": _within(AMOUNT, SHARE),
         "stopped": {"enum": ["bound", "limit"]}, "rejected": _map(COUNT)}
    )  # fmt: skip
    top = _object(
        {"format": {"const": MIX_FORMAT}, "kind": {"const": "mix"}, "model": TEXT, "inputs": inputs,
         "pools": _list(_object({"cluster": TEXT, "devices": DEGREE, "alone": alone}), minItems=2),
         "plans": _list(_ref("record"), minItems=1), "search": search, "warnings": _list(TEXT),
         "timing": _map(AMOUNT)}
    )  # fmt: skip
    return {
        "$schema": DIALECT, "$id": f"urn:moecast:mix:{MIX_FORMAT}", "title": "Answer of `moecast mix`",
        "description": "Numbers are SI. The same question gives the same bytes, `timing` apart.", **top, "$defs": defs,
    }  # fmt: skip


def schema_text(of: str = "plan") -> str:
    """The schema as the published file has it; of: "plan" or "mix"."""
    return json.dumps(mix_schema() if of == "mix" else plan_schema(), indent=1, sort_keys=False) + "\n"


def check_mixed(data: Any, *, where: str = "", closed: bool = False) -> None:
    """Raise UserError naming what an answer of `moecast mix` breaks; closed: keys that are not named too."""
    _check(data, mix_schema() if closed else opened(mix_schema()), where, "mix")


def check_plan(data: Any, *, where: str = "") -> None:
    """Raise UserError naming what a plan file breaks of the schema."""
    _check(data, plan_schema(), where, "plan")


def check_values(data: Any, *, where: str = "") -> None:
    """The same, keys that are not named left alone: a later release may have added them within the format."""
    _check(data, opened(plan_schema()), where, "plan")


def opened(schema: Any) -> Any:
    """A schema whose objects may hold keys that it does not name."""
    if isinstance(schema, Mapping):
        shut = schema.get("additionalProperties") is False
        return {key: opened(value) for key, value in schema.items() if not (shut and key == "additionalProperties")}
    return [opened(each) for each in schema] if isinstance(schema, list) else schema


def _check(data: Any, schema: Schema, where: str, verb: str) -> None:
    from jsonschema import Draft202012Validator

    problems, missing = list[str](), dict[str, list[str]]()
    for error in sorted(Draft202012Validator(schema).iter_errors(data), key=lambda e: [str(p) for p in e.path]):
        place = ".".join(str(p) for p in error.path) or "the file"
        if error.validator == "required":  # one line an object, not one a key
            missing[place] = [key for key in error.validator_value if key not in error.instance]
        else:
            problems.append(f"{place}: {_words(error)}")
    problems = [f"{place}: {', '.join(keys)} missing" for place, keys in missing.items()] + problems
    if problems:
        if len(problems) > MOST_SAID:
            problems = [*problems[:MOST_SAID], f"and {len(problems) - MOST_SAID} more"]
        raise UserError([*problems, f"{REMEDY} with `moecast {verb} --out`"], where=where)


def _words(error: Any) -> str:
    """What is wrong with one value, without the whole of a long one."""
    said = str(error.message)
    value = repr(error.instance)
    short = said.replace(value, value[:40] + "..." if len(value) > 40 else value)
    return short if len(short) <= 160 else short[:157] + "..."
