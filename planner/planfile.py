"""The plan file: the answer as JSON, the same byte for byte for the same question.

Only the `timing` object depends on the machine. `inputs.digest` is the SHA-256 of everything the
answer depends on, so a stale file is recognised; `inputs.digests` says by which input. The layout has a version,
`format`, a JSON Schema (`planner.schema`) and a rule for files of older versions (`planner.migrate`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from hwprofiles.folders import contents, folder_digest, is_own
from hwprofiles.hostmap import HostMap
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.migrate import migrated
from planner.runs import Misfit
from planner.search import PlanResult, RankedPlan
from planner.table import Candidate
from sim.mesh import DEFAULT_ORDER, RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from sim.report import Estimate, Report, rank_fields
from sim.workload import Workload, workload_fields

FORMAT = 2
REQUIRED = ("plans", "search", "inputs")
MAX_FILE_BYTES = 64 * 2**20


def plan_fields(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: every field, tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(plan).items()}


def plan_from(fields: Mapping[str, Any]) -> Plan:
    """The plan of `plan_fields`; unknown fields are a UserError."""
    unknown = sorted(set(fields) - set(Plan.__dataclass_fields__))
    if unknown:
        raise UserError(f"unknown plan field {', '.join(unknown)}; use {', '.join(Plan.__dataclass_fields__)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Plan(**values)


def ranks_from(record: Mapping[str, Any]) -> RankMap:
    """The rank map of a plan record; one without the keys (an older file) has the default.

    Raises UserError where the devices of a host map are not those its digest was made of.
    """
    said, hosts = record.get("host_map"), None
    if said is not None:
        try:
            devices = tuple(first + i for first, count in said["runs"] for i in range(count))
            hosts = HostMap(devices=devices, source=str(said["source"]), nodes=tuple(record.get("hosts") or ()))
            sound = hosts.digest == said["digest"]
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(
                "the host map was changed: its devices are not those of its digest; write the file again",
                where="host_map",
            )
    return RankMap(order=str(record.get("rank_order", DEFAULT_ORDER)), hosts=hosts)


def _estimate(value: Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def plan_record(report: Report, *, rank: int | None = None, bound_s: float | None = None) -> dict[str, Any]:
    """One simulated plan as JSON: SI units, intervals, the breakdown that sums to the step."""
    short = report.out_of_memory
    return {
        "rank": rank,
        "label": report.plan.label(),
        "plan": plan_fields(report.plan),
        "stages": list(report.stages),
        "pipeline_layout": report.pipeline_layout,
        "num_micro_batches": report.num_micro_batches,
        "step_s": _estimate(report.step_s),
        "tokens_per_s_per_gpu": _estimate(report.tokens_per_s_per_gpu),
        "mfu": _estimate(report.mfu),
        "tflops_per_gpu": report.tflops_per_gpu,
        "usd_per_step": report.usd_per_step,
        "peak_mem_bytes": report.peak_mem_bytes,
        "peak_mem_interval_bytes": None if report.peak_mem is None else [report.peak_mem.low, report.peak_mem.high],
        "mem_capacity_bytes": report.mem_capacity_bytes,
        "usable_mem_bytes": report.usable_mem_bytes,
        "host_mem_bytes": report.host_mem_bytes,
        "host_mem_capacity_bytes": report.host_mem_capacity_bytes,
        "bubble_fraction": report.bubble_fraction,
        "exposed_comm_s": dict(report.exposed_comm_s),
        "breakdown": dict(report.breakdown),
        "memory": [dict(stage) for stage in report.memory],
        "link_use": {name: dict(use) for name, use in report.link_use.items()},
        "bound_s": report.bound_s if bound_s is None else bound_s,
        "fits": report.fits,
        "out_of_memory": None if short is None else asdict(short),
        "provenance": list(report.provenance),
        "warnings": list(report.warnings),
        "imbalance": None if report.imbalance is None else asdict(report.imbalance),
        **rank_fields(report.ranks),
        "anchored": None if report.anchored is None else asdict(report.anchored),
        "training": None,
    }


def _candidate(item: Candidate) -> dict[str, Any]:
    plan = plan_fields(item.plan)
    return {"label": item.plan.label(), "plan": plan, "bound_s": item.bound_s, "rank_order": item.ranks.order}


def _misfit(item: Misfit) -> dict[str, Any]:
    return {
        "label": item.plan.label(),
        "plan": plan_fields(item.plan),
        "need_bytes": item.need_bytes,
        "have_bytes": item.have_bytes,
        "bound_s": item.bound_s,
        "rank_order": item.ranks.order,
    }


def _plain(value: Any) -> Any:
    """Tuples to lists, mappings to dicts with text keys, non-finite floats refused."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def inputs_digest(result: PlanResult) -> str:
    """SHA-256 of everything an answer depends on; see `digest_of`."""
    return digest_of(result.model, result.cluster, result.software, result.workload, result.target, result.options)


def digest_of(
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    target: str,
    options: Mapping[str, Any],
) -> str:
    """SHA-256 of model, cluster, software, workload, target and options, in canonical JSON.

    Tables of a user's profile count by what they hold, not by where they lie.
    """
    return _sha256(_inputs(model, cluster, software, workload, target, options))


def digests_of(
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    target: str,
    options: Mapping[str, Any],
) -> dict[str, str]:
    """SHA-256 of each input by name, and of the shipped data (`data`) that every answer rests on."""
    parts = _inputs(model, cluster, software, workload, target, options)
    return {name: _sha256(part) for name, part in parts.items()} | {"data": data_digest()}


@cache
def data_digest() -> str:
    """SHA-256 of the shipped profiles and tables of hardware and software."""
    return folder_digest(("hwprofiles",), (".toml", ".csv", ".gz", ".json"))


def _inputs(
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    target: str,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    machines = asdict(cluster)
    own = cluster.device_spec
    if own is not None and is_own(own.measured):
        machines["device_spec"]["measured"] = contents(own.measured)
    return {
        "model": asdict(model),
        "cluster": machines,
        "software": asdict(software),
        "workload": workload_fields(workload),
        "target": target,
        "options": dict(options),
    }


def _sha256(value: Any) -> str:
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _ranked(plan: RankedPlan) -> dict[str, Any]:
    """A plan of a search; with what it runs with where that was searched too."""
    record = plan_record(plan.report, rank=plan.rank, bound_s=plan.bound_s)
    return record if plan.chosen is None else {**record, "chosen": plan.chosen.to_json()}


def plan_json(result: PlanResult) -> dict[str, Any]:
    """The whole answer as JSON-ready values; deterministic but for `timing`."""
    search = result.search
    counted = {rule.id: rule for rule in result.rules if rule.id in search.rejected}
    out = {
        "format": FORMAT,
        "inputs": {
            "model": result.model.name,
            "cluster": result.cluster.name,
            "devices": result.cluster.num_devices,
            "software": result.software.name,
            "workload": workload_fields(result.workload),
            "target": result.target,
            "options": dict(result.options),
            "digest": inputs_digest(result),
            "digests": digests_of(
                result.model, result.cluster, result.software, result.workload, result.target, result.options
            ),
        },
        "plans": [_ranked(p) for p in result.plans],
        "search": asdict(search),
        "rules": {
            name: {"text": r.text, "where": r.where, "remedy": r.remedy, "source": r.source, "version": r.version}
            for name, r in counted.items()
        },
        "next_best": [_candidate(c) for c in result.next_best],
        "nearest_out_of_memory": [_misfit(m) for m in result.misfits],
        "faster_out_of_memory": [_misfit(m) for m in result.fast_misfits],
        "neighbours": [asdict(n) for n in result.neighbours],
        "warnings": list(result.warnings),
        "goal": None,
        "counts": [],
        "pareto": [],
        "timing": dict(result.timing),
    }
    if result.stages is not None:
        out["stages"] = result.stages.to_json()
    if result.variants:
        out["variants"] = [dict(each) for each in result.variants]
    plain: dict[str, Any] = _plain(out)
    return plain


def plan_text(data: Mapping[str, Any]) -> str:
    """The file's text: indented, keys as written by `plan_json`, ends with a newline."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def save_plan(data: Mapping[str, Any], path: str | Path) -> None:
    """Write a plan file; a folder that is not there is a UserError."""
    try:
        Path(path).write_text(plan_text(data), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write: {error.strerror}; give a file in a folder you may write", where=str(path)
        ) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def read_json(path: str | Path) -> Any:
    """The JSON of a file; a UserError where it is missing, too big, or none (NaN and Infinity are not JSON)."""
    where = str(path)
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise UserError("the file is too large for a plan file; give the output of `moecast plan`", where=where)
        return json.loads(read_bounded(path, MAX_FILE_BYTES), parse_constant=_no_number)
    except OSError as error:
        raise UserError(
            f"cannot read: {error.strerror}; give a file written by `moecast plan --out`", where=where
        ) from None
    except (ValueError, RecursionError):
        raise UserError("not JSON text; give a file written by `moecast plan --out`", where=where) from None


def load_plan(path: str | Path) -> dict[str, Any]:
    """Read a plan file, of an older format too; anything else (missing, binary, too big, other JSON, values that no
    plan has) is a UserError."""
    from planner.schema import check_values

    where, data = str(path), read_json(path)
    if isinstance(data, dict) and "pools" in data and "plans" in data:
        raise UserError(
            "the answer of `moecast mix`: its stages run on several clusters, and this verb reads a plan again on one; "
            "`moecast explain` shows it. Give a file written by `moecast plan --out`",
            where=where,
        )
    missing = [key for key in REQUIRED if not isinstance(data, dict) or key not in data]
    if missing:
        raise UserError(
            f"not a plan file: {', '.join(missing)} missing; give a file written by `moecast plan --out`", where=where
        )
    result = migrated(data, FORMAT, where=where)
    if not result["plans"]:
        raise UserError("a plan file without a plan; write it again with `moecast plan --out`", where=where)
    check_values(result, where=where)
    return result
