"""Plan records (the entries of `plans` in the JSON of `moecast plan`) as rows of text.

The terminal table and the HTML table show the same columns because both read this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.style import bytes_text, gib_text, significant
from planner.wide_answer import BEYOND_BEST
from sim.mesh import DEFAULT_ORDER, RankMap
from sim.report import Report

STEP_HEADER = "step s (80 %)"
ORDER_HEADER = "rank order"
SCHEDULE_HEADER = "schedule"
DEFAULT_SCHEDULES = ("1f1b", "interleaved")  # VPP tells them apart
_NAMED = 8  # nodes named in one line
HEADERS = (
    "#", "TP", "CP", "PP", "VPP", "EP", "ETP", "DP", "MB", "recompute",
    STEP_HEADER, "tok/s/GPU", "MFU %", "GiB", "bubble %", "comm %",
)  # fmt: skip


def recompute_text(modules: object) -> str:
    """The recompute field of a plan: a dash for none."""
    names = [modules] if isinstance(modules, str) else list(modules or ())  # type: ignore[call-overload]
    return ", ".join(str(name) for name in names) or "-"


def _value(record: Mapping[str, Any], key: str) -> float:
    entry = record.get(key, float("nan"))
    return float(entry["value"] if isinstance(entry, Mapping) else entry)


def exposed_share(record: Mapping[str, Any]) -> float:
    """Communication nothing hides, as a share of the step."""
    exposed = record.get("exposed_comm_s", 0.0)
    seconds = sum(exposed.values()) if isinstance(exposed, Mapping) else float(exposed)
    return seconds / _value(record, "step_s")


def step_text(record: Mapping[str, Any]) -> str:
    """Step time with its interval: 12.3 (11.0-13.9)."""
    step = record["step_s"]
    if not isinstance(step, Mapping) or step["low"] >= step["high"]:
        return significant(_value(record, "step_s"))
    return f"{significant(step['value'])} ({significant(step['low'])}-{significant(step['high'])})"


def room_text(report: Report) -> str:
    """What a plan has to fit in, beside what the device has: 75.1 GiB usable (79.2 GiB device)."""
    return f"{gib_text(report.usable_mem_bytes)} usable ({gib_text(report.mem_capacity_bytes)} device)"


def plan_row(record: Mapping[str, Any], usable_bytes: float) -> tuple[str, ...]:
    """One record as the texts under HEADERS; memory is shown as GiB of what is usable."""
    plan = record["plan"]
    return (
        str(record.get("rank", "")),
        *(str(plan[key]) for key in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "micro_batch_seqs")),
        recompute_text(plan.get("recompute")),
        step_text(record),
        significant(_value(record, "tokens_per_s_per_gpu")),
        f"{100 * _value(record, 'mfu'):.1f}",
        f"{record['peak_mem_bytes'] / 2**30:.1f}/{usable_bytes / 2**30:.0f}",
        f"{100 * float(record['bubble_fraction']):.1f}",
        f"{100 * exposed_share(record):.1f}",
    )


def plan_grid(records: Sequence[Mapping[str, Any]], usable_bytes: float) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) of records; with the rank order or schedule where one of them has another than the default."""
    headers, rows = list(HEADERS), [list(plan_row(record, usable_bytes)) for record in records]
    schedules = [str(record["plan"].get("schedule", "1f1b")) for record in records]
    if any(schedule not in DEFAULT_SCHEDULES for schedule in schedules):
        headers.insert(headers.index("recompute"), SCHEDULE_HEADER)
        for row, schedule in zip(rows, schedules, strict=True):
            row.insert(headers.index(SCHEDULE_HEADER), schedule)
    orders = [str(record.get("rank_order", DEFAULT_ORDER)) for record in records]
    if any(order != DEFAULT_ORDER for order in orders):
        at = headers.index("recompute")
        headers.insert(at, ORDER_HEADER)
        for row, order in zip(rows, orders, strict=True):
            row.insert(at, order)
    return headers, rows


def ranks_text(ranks: RankMap) -> str:
    """What is not the default of a rank map, in words; empty where all of it is."""
    said = [] if ranks.order == DEFAULT_ORDER else [f"rank order {ranks.order}"]
    hosts = ranks.hosts
    if hosts is not None:
        first = f", nodes {', '.join(hosts.nodes[:_NAMED])}" if hosts.nodes else ""
        more = f" and {len(hosts.nodes) - _NAMED} more" if len(hosts.nodes) > _NAMED else ""
        said.append(f"ranks placed by {hosts.source or 'a host map'}{first}{more}")
    return "; ".join(said)


def rejected_rows(search: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(reason, candidates lost), the most frequent first."""
    rejected = search.get("rejected") or {}
    return sorted(((str(k), int(v)) for k, v in rejected.items() if v), key=lambda item: (-item[1], item[0]))


def search_line(search: Mapping[str, Any]) -> str:
    """One sentence on the search: counts, then how good the best plan is known to be."""
    raw, legal, fits, simulated = (int(search.get(k) or 0) for k in ("raw", "legal", "fits", "simulated"))
    gap = search.get("gap")
    proof = _PROOF.get(str(search.get("certificate", "gap")), "")
    if not proof:
        proof = "gap unknown" if gap is None else f"not proven, a plan up to {100 * gap:.1f} % faster may exist"
    judged = f"{legal:,} legal, {fits:,} fit, {simulated:,} simulated; {proof}."
    if not (cut := int((search.get("rejected") or {}).get(BEYOND_BEST, 0))):
        return f"{raw:,} candidates, {judged}"
    # what a search that was stopped did not get to has the same count
    left = ", or left when the search stopped," if search.get("stopped") in ("limit", "interrupted") else ""
    return f"{raw:,} candidates, {cut:,} of them ruled out by bounds{left} without being judged; of the rest {judged}"


# Only words that the certificate of `planner.search` supports.
_PROOF = {
    "exact": "proven best of the table",
    "best exact": "first plan proven best of the table, later ranks may be beaten",
    "void": "not proven, an event run came out below its lower bound",
}


def link_rows(report: Report) -> list[tuple[str, str, str]]:
    """(link, bytes per device and step, share of the step it was busy) as text, busiest first."""
    links = sorted(report.link_use.items(), key=lambda item: (-item[1].get("utilisation", 0.0), item[0]))
    return [
        (name, bytes_text(use.get("bytes", 0.0)), f"{100 * use.get('utilisation', 0.0):.1f} %") for name, use in links
    ]
