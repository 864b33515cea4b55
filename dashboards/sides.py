"""Scenarios and uploaded plans as sides of a comparison, and what differs in what they ask and choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards import uploads
from dashboards.answers import Answer
from dashboards.side_numbers import MEASURES, best_of
from hwprofiles.errors import UserError
from planner.compare import Side, read_side

_SAME = ("recompute", "stages")


def side_of(found: Answer, name: str) -> Side:
    """A scenario as a side; name: what a reader calls it."""
    from planner.planfile import plan_record
    from sim.workload import workload_fields

    report, question = found.report, found.question
    asked = {"model": report.model, "cluster": report.cluster, "devices": report.devices, "software": report.software,
             "target": question.target, **workload_fields(found.scenario.workload),
             "routing": question.routing.source,
             **{k: v for k, v in found.knobs.pairs if "." in k and not k.startswith("plan.")}}  # fmt: skip
    return Side(where=name, record=plan_record(report), asked=asked)


def side_of_file(text: str) -> Side:
    """A plan of an uploaded file; `text` is its token, with #2 for the second plan. Raises UserError."""
    token, _, rank = text.partition("#")
    if not uploads.is_token(token):
        raise UserError("not an upload; choose the file again", where="plan file")
    name = uploads.shown(token) + (f" #{rank}" if rank else "")
    path = str(uploads.path(token))
    try:
        side = read_side(f"{path}#{rank}" if rank else path)
    except UserError as error:  # where it lies is not the visitor's to know
        raise UserError([problem.replace(path, name) for problem in error.problems], where=name) from None
    if not isinstance(side.record, Mapping) or not isinstance(side.record.get("plan"), Mapping):
        raise UserError("the plan lacks its fields; write the file again with `moecast plan --out`", where=name)
    return Side(where=name, record=side.record, asked=side.asked)


def differing(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """(what, text of each side) of everything asked or chosen that is not the same in all of them."""
    out = []
    for part in ([side.asked for side in sides], [_choices(side.record) for side in sides]):
        for name in dict.fromkeys(key for fields in part for key in fields):
            texts = [plain(fields.get(name)) for fields in part]
            if len(set(texts)) > 1:
                out.append((str(name)[:60], texts))
    return out


def _choices(record: Mapping[str, Any]) -> dict[str, Any]:
    plan = record.get("plan")
    fields = dict(plan) if isinstance(plan, Mapping) else {}
    return {**fields, "rank_order": record.get("rank_order")}


def plain(value: Any) -> str:
    """A field of a plan or workload as a reader sees it."""
    if value is None or value == [] or value == ():
        return "-"
    if isinstance(value, Mapping):
        said = [f"{k} {plain(v)}" for k, v in value.items() if v not in (None, [], ())]
        return ", ".join(said)[:120] or "-"
    return ", ".join(map(str, value))[:120] if isinstance(value, list | tuple) else str(value)[:120]


def figure_rows(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    """A row per figure: its name, then each side's value with its change against the first; the best is marked."""
    rows = []
    for measure in MEASURES:
        values = [measure.read(side) for side in sides]
        if all(value is None for value in values):
            continue
        best, base = best_of(measure, sides), values[0]
        cells = []
        for i, value in enumerate(values):
            text = "-" if value is None else measure.text(value)
            if i and value is not None and base is not None:
                change = measure.change(value, base)
                text += "" if change == "same" else f" ({change})"
            cells.append(f"{text} ★" if i in best else text)
        rows.append((measure.name, *cells))
    if any(side.record.get("fits") is False for side in sides):
        rows.append(("fits in memory", *("no" if side.record.get("fits") is False else "yes" for side in sides)))
    return rows
