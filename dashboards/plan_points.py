"""Plans of an answer as points: step time, memory, money and GPUs of everything that was simulated.

Read from the JSON of `moecast plan` (`planner.planfile.plan_json` with the keys of `planner.goals`), which may come
from a stranger's file: numbers that are none make a UserError, and names are text for whoever draws them to escape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.plan_rows import recompute_text
from dashboards.style import significant
from hwprofiles.errors import UserError
from sim.mesh import DEFAULT_ORDER

BILLION = 1e9
PARTS = ("plans", "pareto")


@dataclass(frozen=True, kw_only=True)
class PlanPoint:
    """A simulated plan. part, index: where it stands in the JSON; usd: of 1e9 tokens, None without a price; front:
    no other plan is as good in time, memory, money and GPUs and better in one; best: the answer."""

    part: str
    index: int
    label: str
    plan: Mapping[str, Any]
    devices: int
    step_s: float
    peak_bytes: float
    usd: float | None
    front: bool = False
    best: bool = False
    rank_order: str = DEFAULT_ORDER

    @property
    def costs(self) -> tuple[float, ...]:
        """What the front compares, less is better: seconds, bytes, USD, GPUs."""
        return self.step_s, self.peak_bytes, self.usd or 0.0, float(self.devices)

    @property
    def recompute(self) -> str:
        """Recomputed modules in words; a dash for none."""
        return recompute_text(self.plan.get("recompute"))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """An axis of points: its name in a list, its title, the value in the unit of the title, and that as text."""

    name: str
    title: str
    value: Callable[[PlanPoint], float]
    text: Callable[[PlanPoint], str]


def _gib(p: PlanPoint) -> float:
    return p.peak_bytes / 2**30


def _usd(p: PlanPoint) -> float:
    return math.nan if p.usd is None else p.usd


MEASURES: Mapping[str, Measure] = {
    "time": Measure(name="step time", title="step time (s)", value=lambda p: p.step_s,
                    text=lambda p: f"{significant(p.step_s)} s per step"),
    "memory": Measure(name="peak memory", title="peak memory of the fullest GPU (GiB)", value=_gib,
                      text=lambda p: f"{_gib(p):.1f} GiB at the peak"),
    "usd": Measure(name="cost", title="USD per 1e9 tokens", value=_usd,
                   text=lambda p: "no price" if p.usd is None else f"{significant(p.usd)} USD per 1e9 tokens"),
    "gpus": Measure(name="GPUs", title="GPUs", value=lambda p: float(p.devices), text=lambda p: f"{p.devices:,} GPUs"),
}  # fmt: skip


def points_of(data: Mapping[str, Any]) -> tuple[PlanPoint, ...]:
    """Every simulated plan of an answer once, by step time; the front and the answer are marked.

    Raises UserError where the JSON lacks a field.
    """
    try:
        found = _points(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"a plan lacks or mangles a field ({type(error).__name__}: {str(error)[:80]}); write the file again with "
            "`moecast plan --out`", where="plans",
        ) from None  # fmt: skip
    return _marked(found)


def _points(data: Mapping[str, Any]) -> list[PlanPoint]:
    inputs, goal = data["inputs"], data.get("goal") or {}
    step_tokens = float(inputs["workload"]["seq_tokens"]) * float(inputs["workload"]["global_batch_seqs"])
    run_tokens = float((goal.get("terms") or {}).get("tokens") or 0.0)
    seen: set[str] = set()
    found: list[PlanPoint] = []
    for part in PARTS:
        for index, record in enumerate(data.get(part) or ()):
            devices = int(record.get("devices", inputs["devices"]))
            order = str(record.get("rank_order") or DEFAULT_ORDER)[:60]
            same = f"{devices} {order} {sorted(record['plan'].items())}"
            if same in seen:
                continue
            seen.add(same)
            step = record["step_s"]
            usd, tokens = record.get("usd_per_step"), step_tokens
            if part == "pareto":
                usd, tokens = record.get("usd"), run_tokens or step_tokens
            elif run_tokens and record.get("training"):
                usd, tokens = record["training"]["usd"]["value"], run_tokens
            found.append(
                PlanPoint(
                    part=part, index=index, label=str(record["label"])[:120], plan=dict(record["plan"]),
                    devices=devices, step_s=_number(step["value"] if isinstance(step, Mapping) else step),
                    peak_bytes=_number(record["peak_mem_bytes"]),
                    usd=None if usd is None else _number(usd) / tokens * BILLION,
                    best=part == "plans" and index == 0, rank_order=order,
                )
            )  # fmt: skip
    return found


def _number(value: Any) -> float:
    """A finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return float(value)


def _marked(points: Sequence[PlanPoint]) -> tuple[PlanPoint, ...]:
    from dataclasses import replace

    ordered = sorted(points, key=lambda p: (p.costs, p.label))
    front: list[tuple[float, ...]] = []
    out = []
    for point in ordered:  # whoever is better stands before it
        on_front = not any(all(a <= b for a, b in zip(other, point.costs, strict=True)) for other in front)
        if on_front:
            front.append(point.costs)
        out.append(replace(point, front=on_front))
    return tuple(out)


def varied(points: Sequence[PlanPoint]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """(choices that differ among the points with their values in order, choices all share), by short name."""
    every = {name: [read(p) for p in points] for name, read in CHOICES.items()}
    differ = {name: _in_order(values) for name, values in every.items() if len(set(values)) > 1}
    return differ, {name: values[0] for name, values in every.items() if values and name not in differ}


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Distinct values, numbers by size, then texts."""
    return sorted(set(values), key=lambda v: (isinstance(v, str), v))


def _degree(name: str) -> Callable[[PlanPoint], Any]:
    return lambda p: int(p.plan.get(name, 1))


CHOICES: Mapping[str, Callable[[PlanPoint], Any]] = {
    "GPUs": lambda p: p.devices,
    **{name.upper(): _degree(name) for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")},
    "MB": _degree("micro_batch_seqs"),
    "ZeRO": lambda p: int(p.plan.get("zero_stage", 1)),
    "schedule": lambda p: str(p.plan.get("schedule", "1f1b")),
    "rank order": lambda p: p.rank_order,
    "recompute": lambda p: "none" if p.recompute == "-" else p.recompute,
}
